"""Functions that tests of training on several GPUs run in the training processes, which import them from here."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from pyrite.embedding import models
from pyrite.errors import UserError
from pyrite.spec import FinetuneSpec
from pyrite.stages import finetune
from pyrite.training import losses, parallel
from pyrite.training.workers import Send

#: An environment variable with a JSON list: how a process fails, its number, and the training step in which it fails.
FAIL = "TEST_FAIL"

#: Texts of a batch: a query, its positive and two negatives each.
TEXTS = [
    ("what is gout", "gout is a disease of the joints", "mumps", "acne"),
    ("how is asthma treated in older adults", "asthma is treated with an inhaler", "cholera spreads", "vertigo"),
    ("rabies", "rabies is fatal", "lupus is a disease of the immune system", "scurvy begins without vitamin C"),
    ("is measles contagious", "measles is very contagious and spreads by air", "a fever", "rest"),
    ("signs of anemia", "anemia makes people tired", "an infection of the ear that lasts", "sleep"),
]
GRADES = [[4.0, 1.0, 2.0], [3.5, 1.5, 1.0], [4.0, 2.0, 1.0], [4.0, 1.0, 1.0], [3.0, 2.0, 1.5]]


def loss_and_gradient(folder: Path, settings: dict[str, Any], rows: int) -> tuple[float, torch.Tensor]:
    """The loss of the first ``rows`` of ``TEXTS`` in float32, and the gradient of all weights."""
    spec = FinetuneSpec(**settings)
    model, base = (SentenceTransformer(str(folder), device="cpu") for _ in range(2))
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):  # away from the base, where the terms that hold it are 0
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    columns = 3 if spec.loss == "triplet" else 4
    features = [model.preprocess([row[column] for row in TEXTS[:rows]]) for column in range(columns)]
    losses.has_bf16 = lambda _: False  # type: ignore[assignment]
    model.train()  # without it, there is no rehearsal
    finetune._disable_dropout(model)
    loss = losses.build_loss(model, spec, base, 2)(features, torch.tensor(GRADES[:rows]))
    loss.backward()
    parallel.average_gradients(model.parameters())
    gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return float(loss.detach()), torch.cat(gradients)


def send_losses(send: Send, folder: Path, cases: list[tuple[dict[str, Any], int]]) -> None:
    """Send the number, the loss and the gradient of each case, which is settings and a number of rows."""
    for number, (settings, rows) in enumerate(cases):
        loss, gradient = loss_and_gradient(folder, settings, rows)
        send("result", number, loss, gradient.numpy())


def send_missing_gradient(send: Send) -> None:
    """Average the gradients of three weights: one of both processes, one of the first only, and one of none."""
    weights = [torch.zeros(1, requires_grad=True) for _ in range(3)]
    weights[0].grad = torch.tensor([2.0 if parallel.is_main() else 4.0])
    if parallel.is_main():
        weights[1].grad = torch.tensor([2.0])
    parallel.average_gradients(weights)
    send("result", [None if weight.grad is None else float(weight.grad) for weight in weights])


def wait_for_the_end(send: Send) -> None:
    """Send the process id, then wait for the other process, which waits too."""
    send("started", os.getpid())
    time.sleep(600)


def record_steps() -> None:
    """Have the trainer write each batch and its loss to a file, in float32, and fail as ``FAIL`` says."""
    models.has_bf16 = losses.has_bf16 = lambda _: False  # type: ignore[assignment]
    train = finetune._Trainer.training_step
    how, process, step = json.loads(os.environ.get(FAIL, '["", 0, 0]'))

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        if how and (process, step) == (parallel.get_rank(), self.state.global_step):
            {"kill": _kill, "error": _raise_error, "user": _raise_user_error}[how]()
        queries = model.tokenizer.batch_decode(inputs["anchor_input_ids"], skip_special_tokens=True)
        loss = train(self, model, inputs, *rest)
        with Path(f"{self.args.output_dir}-{parallel.get_rank()}.jsonl").open("a") as file:
            file.write(json.dumps({"queries": queries, "loss": float(loss)}) + "\n")
        return loss

    finetune._Trainer.training_step = training_step  # type: ignore[method-assign]


def train(send: Send, *arguments: Any) -> None:
    """In place of the stage's function: the same, with recorded steps."""
    record_steps()
    finetune._train_in_worker(send, *arguments)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise_error() -> None:
    raise ValueError("boom")


def _raise_user_error() -> None:
    raise UserError("training diverged: boom")
