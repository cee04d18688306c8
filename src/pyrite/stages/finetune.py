"""finetune: the model is trained on the mined examples by sentence-transformers' own trainer.

The model folder that this writes is what is scored and handed over: nothing of the trained object in memory is used.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from pyrite import metrics
from pyrite.embedding import models
from pyrite.errors import PyriteError
from pyrite.progress import Progress
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import model_folder
from pyrite.stages.trackers import save_tensorboard_logs
from pyrite.training.batching import ConflictFreeSampler, Row
from pyrite.training.losses import LOSSES


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/model/; return steps, examples and the loss's history as (step, loss)."""
    spec, folder = ctx.spec.finetune, ctx.output_folder(f"iterations/{ctx.iteration}/model")
    examples = ctx.input(f"iterations/{ctx.iteration}/examples.parquet")
    device = models.device_name(ctx.spec.resources.device)
    start = model_folder(ctx, ctx.iteration - 1 if spec.start == "previous" else 0)
    model = models.load(start, model_folder(ctx, 0), ctx.spec.model, device, for_training=True)
    window = model.max_seq_length
    if spec.max_tokens is not None:
        model.max_seq_length = min(spec.max_tokens, window or spec.max_tokens)
    if not spec.dropout:
        _without_dropout(model)
    dataset, rows = read_examples(examples, spec.loss, ctx.spec.mine.num_negatives, ctx.scratch / "arrow")
    with save_tensorboard_logs(ctx):
        trainer = _Trainer(
            rows,
            ctx.spec.seed,
            model=model,
            args=_arguments(ctx, model, dataset.column_names, device),
            train_dataset=dataset,
            loss=LOSSES[spec.loss](model, spec),
            callbacks=[_Tell(ctx.progress), _Keep(ctx)],
        )
        checkpoint = _last_checkpoint(ctx.restore_scratch("checkpoints"))
        if checkpoint:
            ctx.progress.message(f"going on from {checkpoint.name}")
        set_seed(ctx.spec.seed)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.max_seq_length = window
    model.save_pretrained(str(folder), safe_serialization=True)
    _restore_configuration(start, folder)
    history = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    if not history or any(loss != loss for _, loss in history):
        raise PyriteError("training gave no finite loss. Lower finetune.learning_rate.")
    return {
        "examples": len(rows),
        "steps": trainer.state.global_step,
        "loss": history[-1][1],
        "history": history,
    }


class _Trainer(SentenceTransformerTrainer):  # type: ignore[misc]  # the library is not typed
    """The library's trainer, with batches that hold no false negatives and checkpoints without pickled arguments."""

    def __init__(self, rows: list[Row], run_seed: int, **kwargs: Any):
        self._rows, self._run_seed = rows, run_seed
        super().__init__(**kwargs)

    def get_batch_sampler(self, dataset: Dataset, batch_size: int, *_: Any, **__: Any) -> DefaultBatchSampler:
        """Overridden rather than passed as an argument: the arguments are written to every checkpoint."""
        return ConflictFreeSampler(dataset, batch_size, self._rows, self._run_seed)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        del state_dict
        self.model.save_pretrained(output_dir or self.args.output_dir, create_model_card=False)


def read_examples(path: Path, loss: str, negatives: int, cache: Path) -> tuple[Dataset, list[Row]]:
    """The examples as a memory-mapped dataset of the columns that the loss takes, and what the sampler needs."""
    texts = ["anchor", "positive", *(f"negative_{i}" for i in range(1, negatives + 1))]
    wanted = [*texts, "label"] if loss == "distill" else texts
    dataset = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(cache), columns=wanted)
    table = pq.read_table(path, columns=["query_id", "positive_id", "negative_ids", "relevant_ids", "group"])
    rows = [
        Row(
            row["query_id"],
            frozenset([row["positive_id"], *row["negative_ids"]]),
            frozenset(row["relevant_ids"]),
            row["group"],
        )
        for row in table.to_pylist()
    ]
    return dataset, rows


def _arguments(ctx: StepContext, model: SentenceTransformer, columns: list[str], device: str) -> "_Arguments":
    spec = ctx.spec.finetune
    named = {
        column: model.prompts["query" if column == "anchor" else "document"] for column in columns if column != "label"
    }
    return _Arguments(
        output_dir=str(ctx.scratch / "checkpoints"),
        num_train_epochs=spec.epochs,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        warmup_steps=spec.warmup,
        weight_decay=spec.weight_decay,
        lr_scheduler_type="linear",
        bf16=models.has_bf16(device),
        use_cpu=device == "cpu",
        seed=ctx.spec.seed,
        data_seed=ctx.spec.seed,
        prompts={column: prompt for column, prompt in named.items() if prompt} or None,
        save_strategy="steps",
        save_steps=spec.checkpoint_every,
        save_total_limit=1,
        logging_steps=5,
        logging_first_step=True,  # a short training logs nothing else, and its loss is to be known
        report_to=spec.report_to or "none",
        disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
    )


class _Arguments(SentenceTransformerTrainingArguments):  # type: ignore[misc]  # the library is not typed
    """The library's arguments, for one GPU however many there are.

    On several, transformers wraps the model in DataParallel and multiplies the batch by their number: fewer steps and
    more negatives each, so that the machine would decide what comes out and no setting of the run would say so.
    """

    @property
    def n_gpu(self) -> int:
        """How many GPUs this process trains on: 0 on a CPU."""
        return min(1, int(super().n_gpu))


def _without_dropout(model: SentenceTransformer) -> None:
    """Drawing the masks is 46% of a training step on a CPU, and the examples are too few passes to overfit."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout_prob", None), float):
            module.dropout_prob = 0.0


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written whole: the trainer's state is the last file of one."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    for path in folder.glob("checkpoint-*"):
        if path not in whole:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _restore_configuration(start: Path, folder: Path) -> None:
    """The transformer's configuration as it was, but for what a newer library adds: dropout is put back."""
    before, after = start / "config.json", folder / "config.json"
    if before.is_file() and after.is_file():
        merged = json.loads(after.read_text()) | {
            name: value for name, value in json.loads(before.read_text()).items() if "dropout" in name
        }
        after.write_text(json.dumps(merged, indent=2) + "\n")


class _Tell(TrainerCallback):  # type: ignore[misc]  # the library is not typed
    """Tells of each training step."""

    def __init__(self, progress: Progress):
        self._progress = progress

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, control
        self._progress.begin(state.max_steps, "training steps")
        self._progress.advance(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, state, control
        self._progress.advance()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        del args, state, control
        if logs and "loss" in logs:
            metrics.TRAINING_LOSS.set(logs["loss"])


class _Keep(TrainerCallback):  # type: ignore[misc]  # the library is not typed
    """Has each checkpoint outlive this machine, once it is whole."""

    def __init__(self, ctx: StepContext):
        self._ctx = ctx

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, state, control
        self._ctx.save_scratch("checkpoints")
