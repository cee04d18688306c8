"""The retrieval metrics, and their value for every query.

ir-measures computes them (MacAvaney, Macdonald, Ounis: "Streamlining Evaluation with ir-measures", ECIR 2022). It has
nDCG and scaled DCG but no plain DCG, so DCG is defined here with ``ir_measures.define``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ir_measures
import numpy as np
import pyarrow as pa


def _dcg(qrels: Any, run: Any) -> Iterable[tuple[str, float]]:
    """DCG of every query in ``run``, a data frame that ir-measures has sorted and truncated at the cutoff."""
    ranked = run[["query_id", "doc_id"]].assign(rank=run.groupby("query_id").cumcount() + 1)
    graded = ranked.merge(qrels[["query_id", "doc_id", "relevance"]], on=["query_id", "doc_id"])
    gain = graded["relevance"] / np.log2(graded["rank"] + 1)
    return [(str(query), float(value)) for query, value in gain.groupby(graded["query_id"]).sum().items()]


#: Discounted cumulative gain, unnormalised: the sum over ranks r of grade / log2(r + 1).
DCG: Any = ir_measures.define(_dcg, name="DCG", pretty_name="Discounted Cumulative Gain")


@dataclass(frozen=True)
class Metric:
    """A metric: its name in tables, its label in text, its ir-measures object, its definition and a citation."""

    name: str
    label: str
    measure: Any
    definition: str
    citation: str


#: The metrics by name, in the order of the report. Higher is better for all of them. "Relevant" means a grade of 1 or
#: more. A query without retrieved passages counts as 0.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "mrr@5",
            "MRR@5",
            ir_measures.RR @ 5,
            "1 / rank of the first relevant passage, 0 if it is not among the first 5. From 0 to 1.",
            "Kantor and Voorhees, The TREC-5 Confusion Track, Information Retrieval 2, 2000",
        ),
        Metric(
            "dcg@5",
            "DCG@5",
            DCG @ 5,
            "Sum of grade / log2(rank + 1) over the first 5 ranks: every relevant passage counts, early ones "
            "more. From 0; with grades of 1 at most 2.95.",
            "Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, ACM TOIS 20(4), 2002",
        ),
        Metric(
            "ndcg@10",
            "nDCG@10",
            ir_measures.nDCG @ 10,
            "DCG of the first 10 ranks as a share of the DCG of the best possible order. From 0 to 1.",
            "Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, ACM TOIS 20(4), 2002",
        ),
        Metric(
            "p@5",
            "Precision@5",
            ir_measures.P @ 5,
            "Share of the first 5 ranks that hold a relevant passage. From 0 to 1; a query with one relevant "
            "passage cannot exceed 0.2.",
            "van Rijsbergen, Information Retrieval, chapter 7, 1979",
        ),
        Metric(
            "r@5",
            "Recall@5",
            ir_measures.R @ 5,
            "Share of the relevant passages that are among the first 5 ranks. From 0 to 1.",
            "van Rijsbergen, Information Retrieval, chapter 7, 1979",
        ),
    )
}


def per_query(
    rankings: pa.Table, qrels: pa.Table, metrics: Mapping[str, Metric] = METRICS
) -> list[dict[str, str | float]]:
    """The value of every metric for every query that has qrels.

    Args:
        rankings: columns query_id, passage_id, rank (from 1), score, with rows in any order. Only the rank is used.
        qrels: QRELS table. Grades of METRICS are above 0.
        metrics: the metrics by name.

    Returns:
        One ``{"query_id", "metric", "value"}`` per query and metric, sorted by query id, then as in ``metrics``.
    """
    relevance: dict[str, dict[str, int]] = {}
    for query, passage, grade in _rows(qrels, "query_id", "passage_id", "grade"):
        relevance.setdefault(query, {})[passage] = grade
    # The measures sort by score and break ties differently (by id, ascending or descending). A score that decreases
    # strictly with the rank has no ties. Negative ranks are exact in trec_eval's 32-bit floats.
    run: dict[str, dict[str, float]] = {}
    for query, passage, rank in _rows(rankings, "query_id", "passage_id", "rank"):
        if query in relevance:
            run.setdefault(query, {})[passage] = -float(rank)

    names = {metric.measure: name for name, metric in metrics.items()}
    values = {(query, name): 0.0 for query in sorted(relevance) for name in metrics}
    if run:
        for result in ir_measures.iter_calc(list(names), relevance, run):
            values[result.query_id, names[result.measure]] = float(result.value)
    return [{"query_id": query, "metric": name, "value": value} for (query, name), value in values.items()]


def _rows(table: pa.Table, *columns: str) -> Iterable[tuple[Any, ...]]:
    return zip(*(table.column(column).to_pylist() for column in columns), strict=True)
