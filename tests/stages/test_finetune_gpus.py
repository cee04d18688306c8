"""Training on several GPUs, here on two CPU processes: it equals training in one, and errors reach the user."""

import json
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gpu_workers
from pyrite.config import load
from pyrite.errors import PyriteError, UserError
from pyrite.executors.step import open_run, run_step
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.stages import finetune
from pyrite.stages.context import StepContext
from pyrite.store import open_store
from pyrite.training import workers
from small_data import UP_TO_MINE

pytestmark = pytest.mark.slow


class Messages(NullProgress):
    """Collects messages and counts units."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.units = 0

    def advance(self, n: int = 1) -> None:
        self.units += n

    def message(self, text: str) -> None:
        self.texts.append(text)


class Training:
    """Trains iteration 1 of a run, whose steps up to mine are finished, without publishing it."""

    def __init__(self, run_file: Path):
        self.run_file, self.progress = run_file, Messages()

    def context(self, scratch: str, **settings: Any) -> StepContext:
        run = open_run(load(self.run_file), open_store(str(self.run_file.parent / "store")))
        spec = run.spec.model_copy(update={"finetune": run.spec.finetune.model_copy(update=settings)})
        return StepContext(spec, Step("finetune", 1), run.store, run.prefix, run.manifests(), scratch, self.progress)

    def train(self, scratch: str, **settings: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The summary and the weights."""
        ctx = self.context(scratch, **settings)
        summary = finetune.run(ctx)
        return summary, load_file(ctx.scratch / "outputs/iterations/1/model/model.safetensors")

    def steps(self, scratch: str, process: int = 0) -> list[dict[str, Any]]:
        """The batch and the loss of each step, as a process recorded them."""
        lines = (self.context(scratch).scratch / f"checkpoints-{process}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def training(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    """Two processes on the CPU take the place of two GPUs. Training is in float32."""
    run = open_run(load(run_file), open_store(str(run_file.parent / "store")))
    for step in UP_TO_MINE:
        run_step(run, step, NullProgress())
    monkeypatch.setattr(workers, "require_gpus", lambda count: [""] * count)
    monkeypatch.setattr(finetune._Trainer, "training_step", finetune._Trainer.training_step)  # restored at the end
    for module in ("embedding.models", "training.losses"):
        monkeypatch.setattr(f"pyrite.{module}.has_bf16", lambda _: False)
    gpu_workers.record_steps()
    monkeypatch.setattr(finetune, "_train_in_worker", gpu_workers.train)
    return Training(run_file)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return float(sum((a[name] - b[name]).square().sum() for name in a) ** 0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 5, "anchor": 0.1, "l2_sp": 0.1, "epochs": 2},
        {"loss": "cached-multiple-negatives", "rehearsal": 0.0},
    ],
)
def test_two_processes_train_the_model_of_one(settings: dict[str, Any], training: Training, tiny_model: Path) -> None:
    one, weights = training.train("one", **settings)
    two, others = training.train("two", gpus=2, **settings)
    assert {**two, "history": 0, "loss": 0} == {**one, "history": 0, "loss": 0}
    assert training.progress.units == 2 * one["steps"], "the first process alone reports progress"
    steps = training.steps("one")
    for process in (0, 1):
        found = training.steps("two", process)
        assert [step["queries"] for step in found] == [step["queries"] for step in steps]
        assert [step["loss"] for step in found] == pytest.approx([step["loss"] for step in steps], rel=1e-5)
    moved = distance(weights, load_file(tiny_model / "model.safetensors"))
    assert distance(weights, others) < 1e-2 * moved
    # Adam turns the rounding error of a gradient near 0 into a step. On some processors, two weights differ by 1e-3.
    differences = torch.cat([(weights[name] - others[name]).flatten() for name in weights])
    assert float(differences.abs().sort().values[:-10].norm()) < 1e-3 * moved, "apart from ten of a million weights"


def test_rows_of_different_processes_have_no_conflict(training: Training) -> None:
    """Each row is in one batch, and no passage of a batch is relevant to a query in another process's share."""
    training.train("two", gpus=2, batch_size=5)
    path = training.context("two").input("iterations/1/examples.parquet")
    dataset, rows = finetune.read_examples(path, False, 2, training.run_file.parent / "arrow")
    by_query = {"".join(anchor.lower().split()): row for anchor, row in zip(dataset["anchor"], rows, strict=True)}
    batches = [[by_query["".join(query.split())] for query in step["queries"]] for step in training.steps("two")]
    assert sorted(row.query_id for batch in batches for row in batch) == sorted(row.query_id for row in rows)
    assert {len(batch) % 2 for batch in batches} == {0, 1}, "some batches are not divisible"
    for batch in batches:
        for one in batch[::2]:
            assert all(one.relevant.isdisjoint(other.passages) for other in batch[1::2])
            assert all(other.relevant.isdisjoint(one.passages) for other in batch[1::2])


def test_training_resumes_after_a_killed_process(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = training.train("complete", gpus=2)[1]
    monkeypatch.setenv(gpu_workers.FAIL, json.dumps(["kill", 1, 3]))
    with pytest.raises(PyriteError, match=r"^training process 2 of 2 was killed by SIGKILL \(out of memory\?\)\.$"):
        training.train("killed", gpus=2)
    assert not active_children()
    monkeypatch.delenv(gpu_workers.FAIL)
    summary, weights = training.train("killed", gpus=2)
    assert training.progress.texts == ["resuming from checkpoint-2"]
    steps = training.steps("complete")
    assert summary["steps"] == len(steps)
    assert training.steps("killed") == [*steps[:3], *steps[2:]], "the third step is repeated"
    assert distance(weights, expected) == 0


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("error", RuntimeError, "^training process 2 of 2 failed: ValueError: boom$"),
        ("user", UserError, "^training diverged: boom$"),
    ],
)
def test_an_error_of_one_process_ends_all(
    how: str,
    error: type[Exception],
    message: str,
    training: Training,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(gpu_workers.FAIL, json.dumps([how, 1, 1]))
    with pytest.raises(error, match=message):
        training.train("failed", gpus=2)
    assert not active_children()
    assert ("_raise_error" in capfd.readouterr().err) == (how == "error"), "a traceback is printed for bugs only"
