"""The chart's settings on a cluster where the vLLM server and training share the GPUs."""

import pytest

from controller.harness import JOBS, SETTINGS
from pyrite.controller.settings import Settings, load


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = tmp_path_factory.mktemp("chart") / "settings.yaml"
    path.write_text(SETTINGS)
    return load(path, JOBS)
