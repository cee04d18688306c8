"""finetune: trains the model on the mined examples with sentence-transformers' trainer.

Later stages score and export the saved model folder, never the model in memory.
"""

import json
import math
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
from transformers import TrainerCallback, TrainerState, set_seed

from pyrite import metrics
from pyrite.embedding import models
from pyrite.errors import PyriteError, UserError
from pyrite.spec import FinetuneSpec
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import model_folder
from pyrite.stages.trackers import save_tensorboard_logs
from pyrite.training.batching import ConflictFreeSampler, Row
from pyrite.training.divergence import DivergenceCheck
from pyrite.training.losses import LOSSES


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/model/; return the number of examples and steps, and the loss history as (step, loss)."""
    spec, folder = ctx.spec.finetune, ctx.output_folder(f"iterations/{ctx.iteration}/model")
    examples = ctx.input(f"iterations/{ctx.iteration}/examples.parquet")
    device = models.device_name(ctx.spec.resources.device)
    start = model_folder(ctx, ctx.iteration - 1 if spec.start == "previous" else 0)
    model = models.load(start, model_folder(ctx, 0), ctx.spec.model, device, for_training=True)
    max_seq_length = model.max_seq_length
    models.limit_window(model, spec.max_tokens)
    if not spec.dropout:
        _disable_dropout(model)
    loss = LOSSES[spec.loss]
    dataset, rows = read_examples(examples, loss.needs_labels, ctx.spec.mine.num_negatives, ctx.scratch / "arrow")
    with save_tensorboard_logs(ctx):
        trainer = _Trainer(
            rows,
            ctx.spec.seed,
            model=model,
            args=_arguments(ctx, model, dataset.column_names, device),
            train_dataset=dataset,
            loss=loss.build(model, spec),
            callbacks=[_StepCallback(ctx)],
        )
        checkpoint = _last_checkpoint(ctx.restore_scratch("checkpoints"))
        if checkpoint:
            ctx.progress.message(f"resuming from {checkpoint.name}")
        divergence = DivergenceCheck(trainer, dataset["positive"][:100])
        set_seed(ctx.spec.seed)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    if not history:
        raise PyriteError(f"training logged no loss in {trainer.state.global_step} steps of {len(rows)} examples.")
    if model.max_seq_length != max_seq_length:
        model.max_seq_length = max_seq_length
    model.save_pretrained(str(folder), safe_serialization=True)
    _restore_dropout(start, folder)
    if why := divergence.find(folder):
        raise _diverged(why, spec)
    return {
        "examples": len(rows),
        "steps": trainer.state.global_step,
        "loss": history[-1][1],
        "history": history,
    }


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
    dataset = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(cache), columns=columns)
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
    prompts = {
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
        prompts={column: prompt for column, prompt in prompts.items() if prompt} or None,
        save_strategy="steps",
        save_steps=spec.checkpoint_every,
        save_total_limit=1,
        logging_steps=5,
        logging_first_step=True,  # a short training logs nothing else
        logging_nan_inf_filter=False,  # would replace a loss that is not a number by an earlier one
        report_to=spec.report_to or "none",
        disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
    )


class _Arguments(SentenceTransformerTrainingArguments):  # type: ignore[misc]  # the library is not typed
    """The library's arguments, limited to one GPU.

    With several GPUs, transformers would multiply the batch size by their number (DataParallel). So the hardware would
    change the number of steps and of in-batch negatives, and thereby the result.
    """

    @property
    def n_gpu(self) -> int:
        """Number of GPUs to train on: 0 or 1."""
        return min(1, int(super().n_gpu))


def _disable_dropout(model: SentenceTransformer) -> None:
    """Set all dropout to 0: on a CPU, it takes 46% of a training step, and a training this short does not overfit."""
    import torch

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

    def __init__(self, ctx: StepContext):
        self._ctx = ctx

    def on_train_begin(self, _: Any, state: TrainerState, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        self._ctx.progress.begin(state.max_steps, "training steps")
        self._ctx.progress.advance(state.global_step)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._ctx.progress.advance()

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if logs and "loss" in logs:
            metrics.TRAINING_LOSS.set(logs["loss"])
            if not math.isfinite(logs["loss"]):
                raise _diverged(f"the loss is {logs['loss']}", self._ctx.spec.finetune)

    def on_save(self, *_: Any, **__: Any) -> None:
        self._ctx.save_scratch("checkpoints")
