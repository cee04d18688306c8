"""A process in a container starts as many threads as its limit has cores for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyrite.cli.cores import core_limit

V1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")


def folder(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


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
def test_the_limit_of_either_version_of_control_groups(
    tmp_path: Path, files: dict[str, str], limit: int | None
) -> None:
    assert core_limit(folder(tmp_path, files)) == limit


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: nothing is less")
@pytest.mark.parametrize(("own", "threads"), [(None, "1"), ("2", "2")])
def test_libraries_start_no_more_threads_than_the_limit_unless_told(
    tmp_path: Path, own: str | None, threads: str
) -> None:
    """The bug: a pod that may use 8 of a node's 48 cores had 48 threads taking turns."""
    text = (
        "import sys, pathlib, pyrite.cli, pyrite.cli.cores as cores\n"
        "cores.keep_to_limit(pathlib.Path(sys.argv[1]))\n"
        "import torch; print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if own:
        environment["OMP_NUM_THREADS"] = own
    groups = folder(tmp_path, {"cpu.max": "100000 100000\n"})
    command = [sys.executable, "-c", text, str(groups)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == threads
