"""The chart's settings on a cluster whose GPUs are shared by a server and training."""

import pytest

from controller.harness import JOBS, WITH_GPUS
from pyrite.controller.settings import Settings, load


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = tmp_path_factory.mktemp("chart") / "settings.yaml"
    path.write_text(WITH_GPUS)
    return load(path, JOBS)
