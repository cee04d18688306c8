"""validate: scores an iteration's model, and its blends with the base, on the validation queries.

Iteration 0 is the base model. If the run has a retention set, each model is scored on it too, and the default blend is
the largest share of the tuned weights that stays within the limit of the loss. The sets that are only reported are
scored by evaluate.
"""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyrite import tables
from pyrite.embedding import models
from pyrite.embedding.checks import model_notes
from pyrite.evaluation.selection import BASE, DEFAULT_BLENDS, LossLimit, label, largest_weight, model_name
from pyrite.plan import score_key
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import encoder_for, model_folder, read_passages, read_qrels, read_queries, resaved_base
from pyrite.stages.scoring import means, score_retention, score_split


def run(ctx: StepContext) -> dict[str, Any]:
    """Write val.parquet and retention.parquet to iterations/<i>/metrics, and the unblended model's means to score.json.

    Returns the means of each model, and the bound of the retention loss of each model that the search tried.
    """
    spec, scores, tuned = ctx.spec.evaluate, _Scores(ctx), model_name(ctx.iteration)
    scores.add(tuned, model_folder(ctx, ctx.iteration))
    bounds: dict[str, float] = {}
    if ctx.iteration:
        weights: Sequence[float] | None = spec.blends
        if weights is None:
            weights = _search(ctx, scores, bounds) if spec.retention else DEFAULT_BLENDS
        for weight in weights:
            scores.add(model_name(ctx.iteration, weight), _blend(ctx, weight))
    folder = f"iterations/{ctx.iteration}/metrics"
    tables.write(ctx.output(f"{folder}/val.parquet"), chain.from_iterable(scores.val.values()), tables.PER_QUERY)
    # Of models without validation scores, the search needed only the bound.
    retention = {name: rows for name, rows in scores.retention.items() if name in scores.val}
    if spec.retention:
        file = ctx.output(f"{folder}/retention.parquet")
        tables.write(file, chain.from_iterable(retention.values()), tables.RETENTION)
    val = {name: means(rows) for name, rows in scores.val.items()}
    ctx.output(score_key(ctx.iteration)).write_text(json.dumps(val[tuned], sort_keys=True) + "\n")
    summary: dict[str, Any] = {
        "val": val,
        "retention": {name: means(rows)["ndcg@10"] for name, rows in retention.items()},
        "retention_bounds": bounds,
    }
    if ctx.iteration == 0:
        summary["truncated_passages"] = _count_truncated(ctx, scores.passages)
        summary["model_notes"] = model_notes(model_folder(ctx, 0), ctx.spec.model)
    return summary


class _Scores:
    """The per-query scores of models: ``val`` (PER_QUERY rows by model) and ``retention`` (RETENTION rows by model)."""

    def __init__(self, ctx: StepContext):
        self._ctx = ctx
        self.passages, self._queries, self._qrels = read_passages(ctx), read_queries(ctx), read_qrels(ctx)
        self.val: dict[str, list[dict[str, Any]]] = {}
        self.retention: dict[str, list[dict[str, Any]]] = {}

    def add(self, name: str, folder: Path) -> None:
        """Score a model on validation and, if the run has one, on the retention set."""
        progress, encoder = self._ctx.progress, encoder_for(self._ctx, folder)
        progress.message(f"scoring {name} on validation")
        self.val[name] = score_split(encoder, name, "val", self.passages, self._queries, self._qrels, progress)[1]
        self.add_retention(name, folder)

    def add_retention(self, name: str, folder: Path) -> None:
        """Score a model on the retention set, unless it is scored already or the run has no such set."""
        sets = self._ctx.spec.evaluate.retention
        if sets and name not in self.retention:
            encoder = encoder_for(self._ctx, folder)
            self.retention[name] = score_retention(encoder, name, sets.path, self._ctx.progress)

    def losses(self, name: str) -> NDArray[np.float64]:
        """A model's nDCG@10 on the retention set by query, shape (queries,), in an order that all models share."""
        return np.array([row["value"] for row in sorted(self.retention[name], key=lambda row: str(row["query_id"]))])


def _search(ctx: StepContext, scores: _Scores, bounds: dict[str, float]) -> list[float]:
    """The largest weight within the limit of the retention loss; none if the unblended model is, or no blend is.

    Args:
        bounds: gets the bound of every model that is tried.
    """
    limit = LossLimit.of(ctx.spec)
    assert limit is not None
    scores.add_retention(BASE, model_folder(ctx, 0))  # fast, because the embeddings are cached

    def is_within(weight: float) -> bool:
        name = model_name(ctx.iteration, weight)
        if weight < 1:
            scores.add_retention(name, _blend(ctx, weight))
        bound = bounds[name] = limit.bound(scores.losses(BASE), scores.losses(name))
        ctx.progress.message(
            f"{label(name)}: {bound:+.1%} on the retention set at the bound; limit {-limit.max_loss:+.1%}"
        )
        return limit.allows(bound)

    if is_within(1.0):
        return []
    weight = largest_weight(is_within)
    return [weight] if weight else []


def _blend(ctx: StepContext, weight: float) -> Path:
    """Write the blend with this share of the iteration's weights; return its folder."""
    folder = ctx.scratch / model_name(ctx.iteration, weight)
    models.blend(resaved_base(ctx), model_folder(ctx, ctx.iteration), weight, folder)
    return folder


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
