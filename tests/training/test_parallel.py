"""Two training processes compute the loss and the gradient of one, and end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import gpu_workers
from pyrite.errors import UserError
from pyrite.training import parallel
from pyrite.training.losses import LOSSES
from pyrite.training.workers import require_gpus, run_workers

TWO = ["", ""]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_shares_are_equally_long_and_cover_each_text(
    processes: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "get_world_size", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(parallel, "get_rank", lambda rank=rank: rank)
        shares.append(parallel.share(torch.arange(100, 100 + count)))
    interleaved = torch.stack(shares, dim=1).flatten().tolist()  # raises an error unless they are equally long
    assert interleaved[:count] == list(range(100, 100 + count))
    assert len(interleaved) < count + processes


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradient_of_one(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32: losses to 1e-5, gradients to 1e-4 of their norm. Batches of 5, 2 and 1 rows: less than a row each."""
    monkeypatch.setattr("pyrite.training.losses.has_bf16", lambda _: False)
    settings: list[dict[str, Any]] = [
        *({"loss": name, "rehearsal": 0} for name in LOSSES),
        *({"loss": name, "rehearsal": 0, "anchor": 0.7} for name in ("graded", "cached-multiple-negatives")),
        {"loss": "graded", "rehearsal": 0, "train": "query"},
        {"loss": "multiple-negatives", "rehearsal": 3.0},
        *({"loss": name, "rehearsal": 0, "matryoshka": [8]} for name in ("graded", "cached-multiple-negatives")),
    ]
    cases = [(each, rows) for each in settings for rows in (5, 2, 1)]
    results: dict[int, list[tuple[float, Any]]] = {number: [] for number in range(len(cases))}
    handlers = {"result": lambda number, *result: results[number].append(result)}
    run_workers(TWO, gpu_workers.send_losses, (tiny_model, cases), handlers)
    for number, case in enumerate(cases):
        expected, gradient = gpu_workers.loss_and_gradient(tiny_model, *case)
        assert len(results[number]) == 2
        for loss, found in results[number]:
            assert loss == pytest.approx(expected, rel=1e-5), case
            assert (torch.tensor(found) - gradient).norm() <= 1e-4 * gradient.norm(), case


@pytest.mark.slow
def test_a_gradient_that_a_process_lacks_counts_as_zero() -> None:
    results: list[list[float | None]] = []
    run_workers(TWO, gpu_workers.send_missing_gradient, (), {"result": results.append})
    assert results == [[3.0, 1.0, None]] * 2


def test_too_few_gpus_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert require_gpus(2) == ["0", "1"]
    with pytest.raises(UserError, match=r"finetune.gpus is 8, but this machine has 4 for torch. Set it to 4."):
        require_gpus(8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,GPU-8f")
    assert require_gpus(2) == ["3", "1"]


#: Starts two workers that wait. A program of its own, because the tests kill it.
PARENT = """
import signal

import gpu_workers
from pyrite.cli.common import handle_stop_signals
from pyrite.training.workers import run_workers

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    handle_stop_signals()
    run_workers(["", ""], gpu_workers.wait_for_the_end, (), {"started": lambda pid: print(pid, flush=True)})
"""


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(signal_number: int, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    path = os.pathsep.join([str(Path(gpu_workers.__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.send_signal(signal_number)
        try:
            assert parent.wait(30) != 0
        finally:
            parent.kill()  # otherwise a failure would wait for it
        deadline = time.monotonic() + 30
        while any(is_running(worker) for worker in workers):
            assert time.monotonic() < deadline, "a worker outlives its parent"
            time.sleep(0.1)


def is_running(process: int) -> bool:
    """Whether a process exists and is not a zombie, which only its new parent can remove."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
