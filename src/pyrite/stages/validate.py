"""validate: scores an iteration's model, and its blends with the base, on the validation queries.

Iteration 0 is the base model. If the run has a retention set, each model is scored on it too. The sets that are only
reported are scored by evaluate.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pyrite import tables
from pyrite.embedding import models
from pyrite.embedding.checks import model_notes
from pyrite.evaluation.selection import model_name
from pyrite.plan import score_key
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import encoder_for, model_folder, read_passages, read_qrels, read_queries, resaved_base
from pyrite.stages.scoring import means, score_retention, score_split


def run(ctx: StepContext) -> dict[str, Any]:
    """Write val.parquet and retention.parquet to iterations/<i>/metrics, and the unblended model's means to score.json.

    Returns the means of each model.
    """
    spec = ctx.spec.evaluate
    passages, queries, qrels = read_passages(ctx), read_queries(ctx), read_qrels(ctx)
    rows: list[dict[str, Any]] = []
    val: dict[str, dict[str, float]] = {}
    retention: dict[str, float] = {}
    retention_rows: list[dict[str, Any]] = []
    for name, folder in _models(ctx):
        encoder = encoder_for(ctx, folder)
        ctx.progress.message(f"scoring {name} on validation")
        _, scored = score_split(encoder, name, "val", passages, queries, qrels, ctx.progress)
        rows += scored
        val[name] = means(scored)
        if spec.retention:
            scored = score_retention(encoder, name, spec.retention.path, ctx.progress)
            retention_rows += scored
            retention[name] = means(scored)["ndcg@10"]
    tables.write(ctx.output(f"iterations/{ctx.iteration}/metrics/val.parquet"), rows, tables.PER_QUERY)
    unblended = val[model_name(ctx.iteration)]
    ctx.output(score_key(ctx.iteration)).write_text(json.dumps(unblended, sort_keys=True) + "\n")
    if spec.retention:
        retention_file = ctx.output(f"iterations/{ctx.iteration}/metrics/retention.parquet")
        tables.write(retention_file, retention_rows, tables.RETENTION)
    summary: dict[str, Any] = {"val": val, "retention": retention}
    if ctx.iteration == 0:
        summary["truncated_passages"] = _count_truncated(ctx, passages)
        summary["model_notes"] = model_notes(model_folder(ctx, 0), ctx.spec.model)
    return summary


def _models(ctx: StepContext) -> Iterator[tuple[str, Path]]:
    """Yield name and folder of the iteration's model and of its blends. Each blend is written just before it."""
    tuned, blends = model_folder(ctx, ctx.iteration), ctx.spec.evaluate.blends
    yield model_name(ctx.iteration, 1.0), tuned
    if ctx.iteration and blends:
        base = resaved_base(ctx)
        for weight in blends:
            name = model_name(ctx.iteration, weight)
            models.blend(base, tuned, weight, ctx.scratch / name)
            yield name, ctx.scratch / name


def _count_truncated(ctx: StepContext, passages: pa.Table) -> int:
    """The number of passages that the base model truncates. Warns if there are any."""
    encoder = encoder_for(ctx, model_folder(ctx, 0))
    count = encoder.count_truncated(tables.in_context(passages))
    if count:
        ctx.progress.message(
            f"the model truncates {count:,} of {passages.num_rows:,} passages to {encoder.model.max_seq_length} "
            "tokens; a smaller prepare.max_chars avoids it"
        )
    return count
