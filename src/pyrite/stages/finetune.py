"""finetune: trains the model on the mined examples with sentence-transformers' trainer.

Later stages score and export the saved model folder, never the model in memory.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars, load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from transformers import TrainerCallback, TrainerState, set_seed

from pyrite import metrics, tables
from pyrite.embedding import memory, models
from pyrite.embedding.checks import check_matryoshka
from pyrite.errors import PyriteError, UserError
from pyrite.evaluation.selection import model_name
from pyrite.plan import Step
from pyrite.spec import FinetuneSpec, RunSpec
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import current_model, model_folder
from pyrite.stages.trackers import save_tensorboard_logs
from pyrite.store import open_store
from pyrite.training import parallel, workers
from pyrite.training.batching import ConflictFreeSampler, Row
from pyrite.training.divergence import DivergenceCheck
from pyrite.training.losses import LOSSES, build_loss
from pyrite.training.workers import Send, run_workers


@dataclass(frozen=True)
class _Trained:
    """A trained model: its folder, the number of steps, and the loss history as (step, loss)."""

    folder: Path
    steps: int
    history: list[tuple[int, float]]


@dataclass(frozen=True)
class _Folders:
    """The folders that a training reads: the model that it starts from, the base model, and its last checkpoint."""

    start: Path
    base: Path
    checkpoint: Path | None


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/model/; return the number of examples and steps, and the loss history as (step, loss).

    A model soup reports the steps of all trainings, one after the other.
    """
    spec, folder = ctx.spec.finetune, ctx.output_folder(f"iterations/{ctx.iteration}/model")
    examples = ctx.input(f"iterations/{ctx.iteration}/examples.parquet")
    start = current_model(ctx) if spec.start == "previous" else 0
    dataset, rows = _read_examples(ctx, examples)
    members: list[_Trained] = []
    for number in range(spec.soup_size):
        member = _finished_member(ctx, number)
        if member is None:
            checkpoint = _last_checkpoint(ctx.restore_scratch(_checkpoints(number)))
            if checkpoint:
                ctx.progress.message(f"resuming from {checkpoint.name}")
            folders = _Folders(model_folder(ctx, start), model_folder(ctx, 0), checkpoint)
            if spec.gpus == 1:
                member = _train(ctx, number, folders, dataset, rows, metrics.TRAINING_LOSS.set)
            else:
                member = _train_on_gpus(ctx, number, folders, examples)
        members.append(member)
    _average([member.folder for member in members], ctx.scratch / "soup", folder)
    history: list[tuple[int, float]] = []
    steps = 0
    for member in members:
        history += [(steps + step, loss) for step, loss in member.history]
        steps += member.steps
    return {
        "examples": len(rows),
        "steps": steps,
        "loss": sum(member.history[-1][1] for member in members) / len(members),
        "history": history,
        "start": model_name(start),
    }


def _read_examples(ctx: StepContext, path: Path) -> tuple[Dataset, list[Row]]:
    labels = LOSSES[ctx.spec.finetune.loss].needs_labels
    return read_examples(path, labels, ctx.spec.mine.num_negatives, ctx.scratch / "arrow")


def _train_on_gpus(ctx: StepContext, number: int, folders: _Folders, examples: Path) -> _Trained:
    """As ``_train``, in ``finetune.gpus`` processes, whose progress is reported here."""
    trained: list[_Trained] = []
    run_workers(
        workers.require_gpus(ctx.spec.finetune.gpus),
        _train_in_worker,
        (ctx.spec, ctx.step, ctx.store.url, ctx.prefix, ctx.scratch_key, number, folders, examples),
        {
            "begin": ctx.progress.begin,
            "advance": ctx.progress.advance,
            "message": ctx.progress.message,
            "loss": metrics.TRAINING_LOSS.set,
            "trained": trained.append,
        },
    )
    return trained[0]


def _train_in_worker(
    send: Send,
    spec: RunSpec,
    step: Step,
    store: str,
    prefix: str,
    scratch: str,
    number: int,
    folders: _Folders,
    examples: Path,
) -> None:
    """The function of a training process. It gets all inputs as paths, so it needs no manifests."""
    ctx = StepContext(spec, step, open_store(store), prefix, {}, scratch, _SentProgress(send))
    trained = _train(ctx, number, folders, *_read_examples(ctx, examples), partial(send, "loss"))
    if parallel.is_main():
        send("trained", trained)


class _SentProgress:
    """Sends progress to the parent process."""

    def __init__(self, send: Send):
        self.begin, self.advance, self.message = (partial(send, name) for name in ("begin", "advance", "message"))


def _train(
    ctx: StepContext,
    number: int,
    folders: _Folders,
    dataset: Dataset,
    rows: list[Row],
    report_loss: Callable[[float], None],
) -> _Trained:
    """Train member ``number`` of the soup, whose seed is the run's plus ``number``.

    On several GPUs, each process calls this. All have the same weights after each step; the first one saves them.
    """
    spec, seed, checkpoints = ctx.spec.finetune, ctx.spec.seed + number, _checkpoints(number)
    device = models.device_name(ctx.spec.resources.device)
    start, base = folders.start, folders.base
    model = models.load(start, base, ctx.spec.model, device, for_training=True)
    check_matryoshka(spec.matryoshka, model)
    max_seq_length = model.max_seq_length
    models.limit_window(model, spec.max_tokens)
    if not spec.dropout:
        _disable_dropout(model)
    callbacks: list[TrainerCallback] = []
    if parallel.is_main():
        callbacks.append(_StepCallback(ctx, checkpoints, report_loss))
    if spec.l2_sp:
        callbacks.append(_L2SP(model, models.load(base, base, ctx.spec.model, device, for_training=True), spec.l2_sp))
    frozen = models.load(base, base, ctx.spec.model, device) if spec.needs_base else None
    texts = memory.training_texts(memory.device_memory(device), models.size(start), models.window(model) or 1)
    with save_tensorboard_logs(ctx) if parallel.is_main() else nullcontext():
        trainer = _Trainer(
            rows,
            seed,
            model=model,
            args=_arguments(ctx, model, dataset.column_names, device, seed, checkpoints),
            train_dataset=dataset,
            loss=build_loss(model, spec, frozen, texts),
            callbacks=callbacks,
        )
        divergence = DivergenceCheck(trainer, dataset["positive"][:100])
        set_seed(seed)
        trainer.train(resume_from_checkpoint=str(folders.checkpoint) if folders.checkpoint else None)
    history = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    if model.max_seq_length != max_seq_length:
        model.max_seq_length = max_seq_length
    member = ctx.scratch / _member(number)
    if parallel.is_main():
        if not history:
            raise PyriteError(f"training logged no loss in {trainer.state.global_step} steps of {len(rows)} examples.")
        shutil.rmtree(member, ignore_errors=True)
        model.save_pretrained(str(member / "model"), safe_serialization=True)
        _restore_dropout(start, member / "model")
    parallel.barrier()
    if why := divergence.find(member / "model"):
        raise _diverged(why, spec)
    if spec.soup_size > 1 and parallel.is_main():
        # Written last, because it marks the member as finished.
        (member / _STATE).write_text(json.dumps({"steps": trainer.state.global_step, "history": history}))
        ctx.save_scratch(_member(number))
    return _Trained(member / "model", trainer.state.global_step, history)


#: The file with the steps and the history of a finished member of a soup.
_STATE = "member.json"


def _member(number: int) -> str:
    """The scratch folder of a member of the soup."""
    return f"member-{number}"


def _checkpoints(number: int) -> str:
    """The scratch folder of a member's checkpoints."""
    return f"checkpoints-{number}" if number else "checkpoints"


def _finished_member(ctx: StepContext, number: int) -> _Trained | None:
    """Member ``number`` of the soup, if an interrupted attempt has finished it."""
    if ctx.spec.finetune.soup_size == 1:
        return None
    folder = ctx.restore_scratch(_member(number))
    if not (folder / _STATE).is_file():
        return None
    ctx.progress.message(f"training {number + 1} of {ctx.spec.finetune.soup_size} is finished already")
    state = json.loads((folder / _STATE).read_text())
    return _Trained(folder / "model", state["steps"], [(step, loss) for step, loss in state["history"]])


def _average(members: Sequence[Path], scratch: Path, folder: Path) -> None:
    """Write to ``folder`` the model whose weights are the mean of those of ``members``, which all have equal files."""
    shutil.rmtree(scratch, ignore_errors=True)
    mean = members[0]
    for count, member in enumerate(members[1:], start=2):
        models.blend(mean, member, 1 / count, scratch / str(count))
        mean = scratch / str(count)
    shutil.copytree(mean, folder, dirs_exist_ok=True)


def _diverged(why: str, spec: FinetuneSpec) -> UserError:
    return UserError(
        f"training diverged: {why}. Lower finetune.learning_rate ({spec.learning_rate:g}); the default is "
        f"{FinetuneSpec.model_fields['learning_rate'].default:g}."
    )


class _Trainer(SentenceTransformerTrainer):  # type: ignore[misc]  # the library is not typed
    """The library's trainer with conflict-free batches, and with checkpoints that contain no pickled arguments."""

    def __init__(self, rows: list[Row], run_seed: int, **kwargs: Any):
        self._rows, self._run_seed = rows, run_seed
        super().__init__(**kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the gradients of a batch, on several GPUs from all shares of it."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        parallel.average_gradients(weight for group in self.optimizer.param_groups for weight in group["params"])
        return loss

    def get_batch_sampler(self, dataset: Dataset, batch_size: int, *_: Any, **__: Any) -> DefaultBatchSampler:
        """Return the sampler. As an argument of the trainer, it would be pickled into every checkpoint."""
        return ConflictFreeSampler(dataset, batch_size, self._rows, self._run_seed)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        del state_dict
        self.model.save_pretrained(output_dir or self.args.output_dir, create_model_card=False)


def read_examples(path: Path, labels: bool, negatives: int, cache: Path) -> tuple[Dataset, list[Row]]:
    """The examples as a memory-mapped dataset, with the column ``label`` if ``labels``, and as the sampler's rows."""
    texts = ["anchor", "positive", *(f"negative_{i}" for i in range(1, negatives + 1))]
    columns = [*texts, "label"] if labels else texts
    disable_progress_bars()
    dataset = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(cache), columns=columns)
    ids = tables.subset(tables.examples(negatives), "query_id", "positive_id", "negative_ids", "relevant_ids", "group")
    rows = [
        Row(
            row["query_id"],
            frozenset([row["positive_id"], *row["negative_ids"]]),
            frozenset(row["relevant_ids"]),
            row["group"],
        )
        for part in tables.read_parts(path, ids)
        for row in part.to_pylist()
    ]
    return dataset, rows


def _arguments(
    ctx: StepContext, model: SentenceTransformer, columns: list[str], device: str, seed: int, checkpoints: str
) -> "_Arguments":
    spec = ctx.spec.finetune
    prompts = {
        column: model.prompts["query" if column == "anchor" else "document"] for column in columns if column != "label"
    }
    return _Arguments(
        output_dir=str(ctx.scratch / checkpoints),
        num_train_epochs=spec.epochs,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        warmup_steps=spec.warmup,
        weight_decay=spec.weight_decay,
        lr_scheduler_type="linear",
        bf16=models.has_bf16(device),
        use_cpu=device == "cpu",
        seed=seed,
        data_seed=seed,
        prompts={column: prompt for column, prompt in prompts.items() if prompt} or None,
        save_strategy="steps" if parallel.is_main() else "no",
        save_steps=spec.checkpoint_every,
        save_total_limit=1,
        logging_strategy="steps" if parallel.is_main() else "no",
        logging_steps=5,
        logging_first_step=True,  # a short training logs nothing else
        logging_nan_inf_filter=False,  # would replace a loss that is not a number by an earlier one
        report_to=spec.report_to if spec.report_to and parallel.is_main() else "none",
        disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
    )


class _Arguments(SentenceTransformerTrainingArguments):  # type: ignore[misc]  # the library is not typed
    """The library's arguments, limited to one GPU per process.

    With several GPUs, transformers would multiply the batch size by their number (DataParallel). So the hardware would
    change the number of steps and of in-batch negatives, and thereby the result. See ``training.parallel`` instead.
    """

    @property
    def n_gpu(self) -> int:
        """Number of GPUs to train on: 0 or 1."""
        return min(1, int(super().n_gpu))


def _disable_dropout(model: SentenceTransformer) -> None:
    """Set all dropout to 0: on a CPU, it takes 46% of a training step, and a training this short does not overfit."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout_prob", None), float):
            module.dropout_prob = 0.0


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint. A checkpoint without the trainer's state, which is written last, is deleted."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        if (path / "trainer_state.json").is_file():
            complete.append(path)
        else:
            shutil.rmtree(path)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _restore_dropout(start: Path, folder: Path) -> None:
    """Set the dropout probabilities in the saved configuration to those of the model at ``start``."""
    before, after = start / "config.json", folder / "config.json"
    if before.is_file() and after.is_file():
        merged = json.loads(after.read_text()) | {
            name: value for name, value in json.loads(before.read_text()).items() if "dropout" in name
        }
        after.write_text(json.dumps(merged, indent=2) + "\n")


class _StepCallback(TrainerCallback):  # type: ignore[misc]  # the library is not typed
    """Reports steps and losses. Saves checkpoints in the store, so that training survives the loss of its machine."""

    def __init__(self, ctx: StepContext, checkpoints: str, report_loss: Callable[[float], None]):
        self._ctx, self._checkpoints, self._report_loss = ctx, checkpoints, report_loss

    def on_train_begin(self, _: Any, state: TrainerState, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        self._ctx.progress.begin(state.max_steps, "training steps")
        self._ctx.progress.advance(state.global_step)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._ctx.progress.advance()

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if logs and "loss" in logs:
            self._report_loss(logs["loss"])
            if not math.isfinite(logs["loss"]):
                raise _diverged(f"the loss is {logs['loss']}", self._ctx.spec.finetune)

    def on_save(self, *_: Any, **__: Any) -> None:
        self._ctx.save_scratch(self._checkpoints)


class _L2SP(TrainerCallback):  # type: ignore[misc]  # the library is not typed
    """Decoupled L2-SP (Li et al., arXiv 1802.01483): after each step, moves the weights towards the base model's.

    As in AdamW, the share of the distance is ``strength`` times the learning rate, and gradients do not contain it.
    """

    def __init__(self, model: SentenceTransformer, base: SentenceTransformer, strength: float):
        self._pairs = list(zip(model.parameters(), base.parameters(), strict=True))
        self._strength = strength

    def on_optimizer_step(self, *_: Any, optimizer: Any, **__: Any) -> None:
        share = min(1.0, self._strength * optimizer.param_groups[0]["lr"])
        for weight, target in self._pairs:
            if weight.grad is not None:  # the others, such as an unused pooler's, are not trained
                weight.data.lerp_(target.data, share)
