"""In a container, a process starts as many threads as its CPU limit allows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyrite.cli.cores import core_limit

V1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")


def write_files(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, None),
        ({V1[0]: "800000\n", V1[1]: "100000\n"}, 8),
        ({V1[0]: "-1\n", V1[1]: "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_limit_is_read_from_control_groups_1_and_2(
    tmp_path: Path, files: dict[str, str], limit: int | None
) -> None:
    assert core_limit(write_files(tmp_path, files)) == limit


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores, to limit them to one")
@pytest.mark.parametrize(("own", "threads"), [(None, "1"), ("2", "2")])
def test_the_limit_sets_threads_unless_the_user_did(tmp_path: Path, own: str | None, threads: str) -> None:
    """Regression: a pod limited to 8 of a node's 48 cores ran 48 threads that competed for them."""
    text = (
        "import sys, pathlib, pyrite.cli, pyrite.cli.cores as cores\n"
        "cores.limit_threads(pathlib.Path(sys.argv[1]))\n"
        "import torch; print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if own:
        environment["OMP_NUM_THREADS"] = own
    groups = write_files(tmp_path, {"cpu.max": "100000 100000\n"})
    command = [sys.executable, "-c", text, str(groups)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.strip() == threads
