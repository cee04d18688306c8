"""validate: an iteration's model, and its blends with the base, are scored on the validation queries.

Iteration 0 is the base model. Where a retention set is named, each is scored there too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pyrite import tables
from pyrite.embedding import models
from pyrite.evaluation.selection import model_name
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import blendable_base, encoder_of, model_folder, read_passages, read_qrels, read_queries
from pyrite.stages.scoring import means, score_retention, score_split


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/metrics/val.parquet; return the mean metrics and the retention of each model."""
    spec = ctx.spec.evaluate
    passages, queries, qrels = read_passages(ctx), read_queries(ctx), read_qrels(ctx)
    rows: list[dict[str, Any]] = []
    val: dict[str, dict[str, float]] = {}
    retention: dict[str, float] = {}
    for name, folder in _models(ctx):
        encoder = encoder_of(ctx, folder)
        ctx.progress.message(f"scoring {name} on validation")
        _, scored = score_split(encoder, name, "val", passages, queries, qrels, ctx.progress)
        rows += scored
        val[name] = means(scored)
        if spec.retention:
            retention[name] = score_retention(encoder, spec.retention.path, ctx.progress)
    tables.write(ctx.output(f"iterations/{ctx.iteration}/metrics/val.parquet"), rows, tables.PER_QUERY)
    summary: dict[str, Any] = {"val": val, "retention": retention}
    if ctx.iteration == 0:
        summary["truncated_passages"] = _count_cut(ctx, passages)
    return summary


def _models(ctx: StepContext) -> Iterator[tuple[str, Path]]:
    """Name and folder of the iteration's model and of its blends, which are made as they are asked for."""
    tuned, blends = model_folder(ctx, ctx.iteration), ctx.spec.evaluate.blends
    yield model_name(ctx.iteration, 1.0), tuned
    if ctx.iteration and blends:
        base = blendable_base(ctx)
        for weight in blends:
            name = model_name(ctx.iteration, weight)
            models.blend(base, tuned, weight, ctx.scratch / name)
            yield name, ctx.scratch / name


def _count_cut(ctx: StepContext, passages: pa.Table) -> int:
    """How many passages the model cannot read to their end; said aloud, since passages could be made shorter."""
    encoder = encoder_of(ctx, model_folder(ctx, 0))
    cut = encoder.cut(passages["text"].to_pylist())
    if cut:
        verb = "is" if cut == 1 else "are"
        window = encoder.model.max_seq_length
        ctx.progress.message(
            f"{cut:,} of {passages.num_rows:,} passages {verb} longer than the model's window of {window} tokens and "
            "truncated; a smaller prepare.max_chars avoids it"
        )
    return cut
