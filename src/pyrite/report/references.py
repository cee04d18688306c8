"""Reference rows on test: what the passages' context is worth, and BM25, which a tuned model has to beat."""

from typing import Any

import numpy as np

from pyrite.evaluation.clusters import Clusters
from pyrite.evaluation.scoring import METRICS
from pyrite.report.queries import PerQuery, as_json, compare_by_query

#: Names in the table of reference rows.
BASE_BARE, CHOSEN_BARE, BM25 = "base-without-context", "chosen-without-context", "bm25"

#: The reference rows by name, with their labels, in the order of the report.
REFERENCES = {
    BASE_BARE: "base model, without context",
    CHOSEN_BARE: "chosen model, without context",
    BM25: "BM25",
}


def rows(
    references: PerQuery, chosen: dict[str, dict[str, float]], resamples: int, seed: int, clusters: Clusters
) -> list[dict[str, Any]]:
    """Means of every reference row, and the comparison of the chosen model with it, by metric.

    Args:
        references: metrics of the reference rows on test.
        chosen: those of the chosen model.
    """
    return [
        {
            "name": name,
            "label": label,
            "means": {metric: float(np.mean(list(references[name][metric].values()))) for metric in METRICS},
            "comparisons": {
                metric: as_json(compare_by_query(references[name][metric], chosen[metric], resamples, seed, clusters))
                for metric in METRICS
            },
        }
        for name, label in REFERENCES.items()
        if name in references
    ]


def metrics_better_in_bm25(references: list[dict[str, Any]]) -> dict[str, float]:
    """BM25's MRR@5 and DCG@5, where they are higher than the chosen model's."""
    return {
        metric: row["means"][metric]
        for row in references
        if row["name"] == BM25
        for metric in ("mrr@5", "dcg@5")
        if row["comparisons"][metric]["difference"] < 0
    }
