"""The folder of public data sets. Tests that need a data set are skipped if it is not there."""

import os
from pathlib import Path

#: A folder with one folder per data set, such as medquad/medquad-xml.tar.xz.
REAL_DATA = Path(os.environ.get("PYRITE_TEST_DATA", Path(__file__).parents[1] / "data"))
