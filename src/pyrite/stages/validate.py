"""validate: scores an iteration's model, and its blends with the base, on the validation queries.

Iteration 0 is the base model. If the run has a retention set, each model is scored on it too. If an iteration loses too
much there and evaluate.blends is unset, its blend is the one with the largest tuned weight within the limit. The sets
that are only reported are scored by evaluate.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyrite import tables
from pyrite.embedding import models
from pyrite.embedding.checks import model_notes
from pyrite.embedding.encoder import Encoder
from pyrite.evaluation.selection import BASE, DEFAULT_BLENDS, LossLimit, label, largest_weight, model_name
from pyrite.plan import parents, score_key
from pyrite.stages.context import StepContext
from pyrite.stages.found import DEPTH, read_found
from pyrite.stages.inputs import (
    encoder,
    encoder_for,
    model_folder,
    passage_texts,
    read_passage_ids,
    read_passages_at,
    read_qrels,
    read_queries,
    resaved_base,
)
from pyrite.stages.scoring import (
    RANKED,
    Corpus,
    corpus_of,
    label_rankings,
    means,
    rank_split,
    rankings,
    score_rankings,
    score_retention,
)


def run(ctx: StepContext) -> dict[str, Any]:
    """Write val.parquet and retention.parquet to iterations/<i>/metrics, and the unblended model's means to score.json.

    With evaluate.judge, also write rankings.parquet: the top passages on validation and test, for assess.
    Returns the means of each model, and the bound of the retention change of each model that the search tried.
    """
    spec, scores, tuned = ctx.spec.evaluate, _Scores(ctx), model_name(ctx.iteration)
    scores.add_iteration()
    bounds: dict[str, float] = {}
    if ctx.iteration:
        weights: Sequence[float] | None = spec.blends
        if weights is None:
            weights = _search(ctx, scores, bounds) if spec.searches_blend else DEFAULT_BLENDS
        for weight in weights:
            scores.add_blend(model_name(ctx.iteration, weight), scores.blend(weight))
    folder = f"iterations/{ctx.iteration}/metrics"
    tables.write(ctx.output(f"{folder}/val.parquet"), chain.from_iterable(scores.val.values()), tables.PER_QUERY)
    # Of models without validation scores, the search needed only the bound.
    retention = {name: rows for name, rows in scores.retention.items() if name in scores.val}
    if spec.retention:
        file = ctx.output(f"{folder}/retention.parquet")
        tables.write(file, chain.from_iterable(retention.values()), tables.RETENTION)
    if spec.judge:
        tables.write(ctx.output(f"{folder}/rankings.parquet"), pa.concat_tables(scores.rankings), tables.RANKINGS)
    val = {name: means(rows) for name, rows in scores.val.items()}
    ctx.output(score_key(ctx.iteration)).write_text(json.dumps(val[tuned], sort_keys=True) + "\n")
    summary: dict[str, Any] = {
        "val": val,
        "retention": {name: means(rows)["ndcg@10"] for name, rows in retention.items()},
        "retention_bounds": bounds,
    }
    if ctx.iteration == 0:
        summary["truncated_passages"] = _count_truncated(ctx, scores.passages.num_rows)
        summary["model_notes"] = model_notes(model_folder(ctx, 0), ctx.spec.model)
    return summary


class _Scores:
    """The per-query scores of models: ``val`` (PER_QUERY rows by model) and ``retention`` (RETENTION rows by model)."""

    def __init__(self, ctx: StepContext):
        self._ctx = ctx
        self._queries, self._qrels = read_queries(ctx), read_qrels(ctx)
        self.passages = read_passage_ids(ctx)
        #: With evaluate.judge, also test: assess grades the passages found. They are not scored here.
        self._splits = ("val", "test") if ctx.spec.evaluate.judge else ("val",)
        self.val: dict[str, list[dict[str, Any]]] = {}
        self.retention: dict[str, list[dict[str, Any]]] = {}
        #: RANKINGS tables of the models in ``val``, on validation and test.
        self.rankings: list[pa.Table] = []

    def add_iteration(self) -> None:
        """Score the iteration's unblended model by the passages that embed found, and on the retention set."""
        ctx, name, ids = self._ctx, model_name(self._ctx.iteration), self.passages["passage_id"].combine_chunks()
        for split in self._splits:
            query_ids = self._of_split(split)["query_id"].to_pylist()
            k = min(RANKED, len(ids))
            found = read_found(ctx, ctx.iteration, split, len(query_ids), k)
            self._add(name, split, label_rankings(name, split, rankings((query_ids, ids), *found)))
        self.add_retention(name, encoder(ctx, ctx.iteration))

    def add_blend(self, name: str, encoder: Encoder) -> None:
        """Score a blend among the passages of the pool, and on the retention set."""
        self._ctx.progress.message(f"scoring {label(name)} on validation")
        for split in self._splits:
            ranked = rank_split(encoder, name, split, self._pool, self._queries, self._ctx.progress)
            self._add(name, split, ranked)
        self.add_retention(name, encoder)

    def _add(self, name: str, split: str, ranked: pa.Table) -> None:
        self.rankings.append(ranked)
        if split == "val":
            self.val[name] = score_rankings(name, split, ranked, self._queries, self._qrels)

    def _of_split(self, split: str) -> pa.Table:
        return self._queries.filter(pc.equal(self._queries["split"], split))

    @cached_property
    def _pool(self) -> Corpus:
        """The passages that base or iteration's model rank among the first ``DEPTH`` for some validation query.

        A blend's first passages are nearly always among them, so it need not encode the complete corpus
        (docs/results.md). With evaluate.judge it does: evaluate ranks the chosen blend in the complete corpus, and
        assess must have graded what it finds.
        """
        ctx, k = self._ctx, min(DEPTH, self.passages.num_rows)
        if ctx.spec.evaluate.judge:
            return Corpus(self.passages["passage_id"].combine_chunks(), passage_texts(ctx))
        found = [
            read_found(ctx, iteration, "val", self._of_split("val").num_rows, k)[1] for iteration in (0, ctx.iteration)
        ]
        return corpus_of(read_passages_at(ctx, np.unique(np.concatenate([each.ravel() for each in found]))))

    def add_retention(self, name: str, encoder: Encoder) -> None:
        """Score a model on the retention set, unless it is scored already or the run has no such set."""
        sets = self._ctx.spec.evaluate.retention
        if sets and name not in self.retention:
            self.retention[name] = score_retention(encoder, name, sets.path, self._ctx.progress)

    def retention_values(self, name: str) -> NDArray[np.float64]:
        """A model's nDCG@10 on the retention set by query, shape (queries,), in an order that all models share."""
        return np.array([row["value"] for row in self.retention[name]])

    def blend(self, weight: float) -> Encoder:
        """The encoder of the blend with this share of the iteration's weights."""
        ctx = self._ctx
        folder = ctx.scratch / model_name(ctx.iteration, weight)
        models.blend(self._base, model_folder(ctx, ctx.iteration), weight, folder)
        return encoder_for(ctx, folder)

    @cached_property
    def _base(self) -> Path:
        return resaved_base(self._ctx)


def _search(ctx: StepContext, scores: _Scores, bounds: dict[str, float]) -> Sequence[float]:
    """The weights of the iteration's blends: the default if it is within the limit of the retention loss.

    Otherwise the largest weight that is within the limit; none if no weight is.

    Args:
        bounds: gets the bound of every model that is tried.
    """
    limit = LossLimit.of(ctx.spec)
    assert limit is not None
    scores.add_retention(BASE, encoder(ctx, 0))  # fast, because the embeddings are cached

    def is_within(weight: float) -> bool:
        name = model_name(ctx.iteration, weight)
        if weight < 1:
            scores.add_retention(name, scores.blend(weight))
        bound = bounds[name] = limit.bound(scores.retention_values(BASE), scores.retention_values(name))
        ctx.progress.message(
            f"{label(name)}: {bound:+.1%} on the retention set at the bound; limit {-limit.max_loss:+.1%}"
        )
        return limit.allows(bound)

    if is_within(1.0):
        return DEFAULT_BLENDS
    weight = largest_weight(is_within)
    return [weight] if weight else []


def _count_truncated(ctx: StepContext, passages: int) -> int:
    """The number of passages that the base model truncates. Warns if there are any."""
    parts = (step for step in parents(ctx.spec, ctx.step) if step.stage == "embed")
    above = (ctx.manifests[step.name]["summary"] for step in parts)
    count = sum(int(summary.get("truncated", 0)) for summary in above)
    if count:
        ctx.progress.message(
            f"the model truncates {count:,} of {passages:,} passages; a smaller prepare.max_chars avoids it"
        )
    return count
