"""Compares a runtime's embeddings with those of the trained model: cosines, rankings, and retrieval metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pyrite.evaluation import scoring
from pyrite.evaluation.clusters import Clusters
from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.significance import Comparison
from pyrite.export.texts import Corpus, Text
from pyrite.report.queries import compare_by_query

Floats = npt.NDArray[np.float32]

#: Passages per query whose order is compared.
DEPTH = 10

#: The metrics that are compared if the corpus has relevant passages.
COMPARED = ("mrr@5", "dcg@5")

#: Below this sum of squared distances, a wrong setting changes nothing.
_MIN_CHANGE = 1e-6

#: Texts that an error shows.
_SHOWN = 3
#: Characters of them that it shows, of the start and of the end.
_SHOWN_CHARS = 40


@dataclass(frozen=True)
class Worst:
    """A text whose embedding differs much: its number in the check, and its cosine similarity."""

    position: int
    cosine: float


class Variant(NamedTuple):
    """The trained model with one wrong setting, which a runtime may have by mistake.

    Attributes:
        name: the defect, as it continues "the trained model".
        positions: the numbers in the check of the texts that show it.
        vectors: their embeddings with the wrong setting, shape (texts, dims).
    """

    name: str
    positions: list[int]
    vectors: Floats


@dataclass(frozen=True)
class Parity:
    """A runtime's embeddings compared with those of the trained model.

    Attributes:
        min_cosine, mean_cosine: over all texts.
        worst: the texts with the lowest cosine similarities, lowest first.
        overlap: the share of a query's first DEPTH passages that are the same, as the mean over queries; None if the
            corpus is empty.
        metrics: for each metric of COMPARED, the trained model compared with the runtime; empty if no query has a
            relevant passage.
        projections: for each variant, by name: ``projection``.
    """

    min_cosine: float
    mean_cosine: float
    worst: list[Worst]
    overlap: float | None
    metrics: dict[str, Comparison]
    projections: dict[str, float]


@dataclass(frozen=True)
class Statistics:
    """How intervals are computed: resamples, seed, and the cluster of each query (itself by default)."""

    resamples: int = 1000
    seed: int = 0
    clusters: Clusters = field(default_factory=dict)


def compare_embeddings(
    reference: Floats,
    other: Floats,
    texts: Sequence[Text],
    corpus: Corpus,
    variants: Sequence[Variant],
    dot: bool,
    statistics: Statistics,
) -> Parity:
    """Compare the embeddings ``other`` of a runtime with those of the trained model, both of shape (texts, dims).

    Args:
        texts: the texts, as from ``parity_texts(corpus, ...)``.
        dot: the model compares embeddings by dot product instead of cosine similarity.
    """
    cosines = np.sum(_normalised(reference) * _normalised(other), axis=1, dtype=np.float64).clip(-1, 1)
    order = np.argsort(cosines, kind="stable")[:_SHOWN]
    worst = [Worst(int(position), float(cosines[position])) for position in order]
    overlap, metrics = None, {}
    if corpus.queries and corpus.passages:
        tops = [_top(each if dot else _normalised(each), texts) for each in (reference, other)]
        overlap = float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(*tops, strict=True)]))
        metrics = _metrics(_per_query(tops[0], corpus), _per_query(tops[1], corpus), statistics)
    projections = {variant.name: projection(reference, other, variant) for variant in variants}
    return Parity(float(cosines.min()), float(cosines.mean()), worst, overlap, metrics, projections)


def projection(reference: Floats, other: Floats, variant: Variant) -> float:
    """The part of a wrong setting's change that ``other`` has: 0, none of it; 1, all of it.

    The difference of ``other`` from ``reference``, both of shape (texts, dims), is projected onto that of the variant.
    Rounding errors of quantisation are nearly orthogonal to it. So a wrong setting is recognised even if it lowers
    the cosine similarities less than quantisation does.
    """
    start = _normalised(reference[variant.positions])
    change = _normalised(variant.vectors) - start
    difference = _normalised(other[variant.positions]) - start
    squared = float(np.sum(change * change))
    return float(np.sum(change * difference)) / squared if squared > _MIN_CHANGE else 0.0


def describe_worst(parity: Parity, texts: Sequence[Text]) -> str:
    """The worst texts, shortened, with their cosine similarities."""
    return "; ".join(
        f"{each.cosine:.4f} for the {_name(texts[each.position])} {_shorten(texts[each.position].text)!r}"
        for each in parity.worst
    )


def _name(text: Text) -> str:
    return "query" if text.kind == "query" else "passage"


def _shorten(text: str) -> str:
    return text if len(text) <= 2 * _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} ... {text[-_SHOWN_CHARS:]}"


def _normalised(vectors: Floats) -> Floats:
    normalised: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return normalised


def _top(vectors: Floats, texts: Sequence[Text]) -> npt.NDArray[np.int64]:
    """The positions of the first passages of the corpus for each of its queries, shape (queries, DEPTH or fewer)."""
    queries, passages = ([i for i, each in enumerate(texts) if each.group == group] for group in ("query", "passage"))
    scores = vectors[queries] @ vectors[passages].T
    return np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]


def _per_query(top: npt.NDArray[np.int64], corpus: Corpus) -> dict[str, dict[str, float]]:
    """``{metric: {query id: value}}`` for the queries that have relevant passages."""
    queries, passages = list(corpus.queries), list(corpus.passages)
    ranked = pa.table(
        {
            "query_id": np.repeat(queries, top.shape[1]).tolist(),
            "passage_id": [passages[position] for position in top.ravel()],
            "rank": np.tile(np.arange(1, top.shape[1] + 1), len(queries)),
        }
    )
    pairs = [(query, *pair) for query, graded in corpus.relevant.items() for pair in graded.items()]
    names = ("query_id", "passage_id", "grade")
    qrels = pa.table({name: [pair[i] for pair in pairs] for i, name in enumerate(names)})
    found: dict[str, dict[str, float]] = {name: {} for name in COMPARED}
    for row in scoring.per_query(ranked, qrels, {name: METRICS[name] for name in COMPARED}):
        found[str(row["metric"])][str(row["query_id"])] = float(row["value"])
    return found


def _metrics(
    reference: dict[str, dict[str, float]], other: dict[str, dict[str, float]], statistics: Statistics
) -> dict[str, Comparison]:
    return {
        name: compare_by_query(values, other[name], statistics.resamples, statistics.seed, statistics.clusters)
        for name, values in reference.items()
        if values
    }


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The entry of a metric in parity.json. An interval that is undefined is None."""
    interval = comparison.difference_interval
    bounds = [interval.low, interval.high] if np.isfinite(interval.low) else None
    return {
        "trained": comparison.base,
        "runtime": comparison.other,
        "difference": comparison.difference,
        "interval": bounds,
        "queries": comparison.queries,
        "clusters": comparison.clusters,
    }
