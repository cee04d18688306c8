"""`pyrite status` shows running and failed steps."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyrite.locks import locked

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_status_shows_killed_steps_and_running_ones(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    train = subprocess.Popen(
        [sys.executable, "-m", "pyrite", "train", str(run_file), "--store", str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lock, deadline = store / "runs/small/locks/finetune-1", time.monotonic() + 240
    while not (found := re.match(r"process (\d+) ", lock.read_text() if lock.exists() else "")):
        assert time.monotonic() < deadline
        assert train.poll() is None, train.communicate()
        time.sleep(0.005)
    os.kill(int(found[1]), signal.SIGKILL)
    _, err = train.communicate(timeout=60)
    assert train.returncode == 1
    assert "was killed by SIGKILL" in err.replace("\n", " ")

    shown = pyrite("status", run_file, COLUMNS="200").stdout
    assert re.search(r"finetune, iteration 1 +failed +it was killed by SIGKILL", shown)
    with locked(lock, "finetune"):
        shown = pyrite("status", run_file, COLUMNS="200").stdout
    assert re.search(rf"finetune, iteration 1 +running +\d+ s +process {os.getpid()} on .* since 20", shown)
