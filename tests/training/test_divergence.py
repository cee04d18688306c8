"""A training that failed is an error, and nothing of it looks finished."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from pyrite.config import load
from pyrite.errors import UserError
from pyrite.executors.step import Run, open_run, run_step
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.store import open_store
from pyrite.training import divergence
from pyrite.training.losses import LOSSES, Loss
from small_data import UP_TO_MINE


@pytest.fixture
def train(run_file: Path, tmp_path: Path) -> Callable[..., Run]:
    """Run up to finetune with overrides."""

    def call(*overrides: str) -> Run:
        run = open_run(load(run_file, overrides), open_store(str(tmp_path / "store")))
        for step in (*UP_TO_MINE, Step("finetune", 1)):
            run_step(run, step, NullProgress())
        return run

    return call


@pytest.mark.parametrize("rate", ["100", "0.1"])
def test_a_learning_rate_that_diverges_is_an_error(rate: str, train: Callable[..., Run], tmp_path: Path) -> None:
    """Regression: "loss 0.514", then ArrowIndexError, or "Not adapted" with exit code 0.

    Which of the two happens to the model depends on how the processor rounds.
    """
    reason = "(embeds all texts alike|the loss of a batch rose)"
    with pytest.raises(UserError, match=rf"training diverged: .*{reason}.*Lower finetune\.learning_rate \({rate}\)"):
        train(f"finetune.learning_rate={rate}", "finetune.rehearsal=0")
    assert not list((tmp_path / "store/runs/small").glob("iterations/1/model/*"))
    assert not (tmp_path / "store/runs/small/steps/finetune-1.json").exists()
    # The same run continues with a lower rate.
    assert (
        train("finetune.learning_rate=1e-3", "finetune.rehearsal=0").manifests()["finetune-1"]["summary"]["steps"] == 6
    )


@pytest.mark.parametrize(
    ("after", "found"),
    [
        ((1.19, 0.026), ""),
        ((1.21, 0.5), "the loss of a batch rose from 1.000 to 1.210"),
        ((float("nan"), 0.5), "the loss of a batch rose from 1.000 to nan"),
        ((0.1, 0.024), "the trained model embeds all texts alike"),
    ],
)
def test_a_higher_loss_and_equal_embeddings_are_found(
    after: tuple[float, float], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before training, the loss is 1 and the mean cosine distance 0.5. The limits are 1.2 and 0.025."""
    measured = iter([(1.0, 0.5), after])
    monkeypatch.setattr(divergence.DivergenceCheck, "_measure", lambda _: next(measured))
    monkeypatch.setattr(divergence, "find_broken_weights", lambda _: "")
    trainer = Mock()
    trainer.get_train_dataloader.return_value = [{}]
    assert divergence.DivergenceCheck(trainer, ["text"]).find(Path()) == found


def test_a_loss_that_is_not_a_number_stops_training(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: the trainer replaced it by the average of earlier losses."""

    class Broken(torch.nn.Module):
        def forward(self, features: Iterable[dict[str, torch.Tensor]], labels: Any) -> torch.Tensor:
            del features, labels
            return torch.tensor(float("nan"), requires_grad=True)

    monkeypatch.setitem(LOSSES, "multiple-negatives", Loss(lambda *_: Broken()))
    with pytest.raises(UserError, match="training diverged: the loss is nan"):
        train()


def test_weights_that_are_not_finite_are_an_error(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "find_broken_weights", lambda _: "pooler.bias")
    with pytest.raises(UserError, match=r"the trained weights pooler\.bias are not finite"):
        train()
