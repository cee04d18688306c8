"""Metrics on the pool that ``evaluate.judge`` graded: its grades take the place of an answer key.

The pool has the top passages of every candidate, so all of them are compared on equally complete judgments (pooling:
Spärck Jones and van Rijsbergen, 1975). A passage without a judgment counts as not relevant.
"""

from dataclasses import replace
from typing import Any

import ir_measures
import pyarrow as pa
import pyarrow.compute as pc

from pyrite.evaluation.scoring import DCG, METRICS, Metric, per_query
from pyrite.judges.base import GRADES, RELEVANT

#: The gain of grade 4, of which grades 1, 2 and 3 have 0, 1 and 2 parts: ``pyrite grade`` uses the same gains.
_BEST = max(GRADES) - 1
_RELEVANCE = RELEVANT - 1

_MEASURES: dict[str, Any] = {
    "mrr@5": ir_measures.RR(rel=_RELEVANCE) @ 5,
    "dcg@5": DCG @ 5,
    "ndcg@10": ir_measures.nDCG @ 10,
    "p@5": ir_measures.P(rel=_RELEVANCE) @ 5,
    "r@5": ir_measures.R(rel=_RELEVANCE) @ 5,
}

#: The metrics of ``scoring.METRICS``, with relevance = grade - 1. Grades 3 and 4 are relevant.
JUDGED_METRICS: dict[str, Metric] = {name: replace(METRICS[name], measure=_MEASURES[name]) for name in METRICS}


def judged_per_query(rankings: pa.Table, judgments: pa.Table) -> list[dict[str, str | float]]:
    """The value of every metric for every query of ``rankings`` that has judgments, as ``scoring.per_query`` gives it.

    nDCG@10 and DCG@5 use the gain (grade - 1) / 3, the others whether the grade is 3 or 4. The ideal order of nDCG@10
    is that of all judged passages of the query. A query without a relevant passage counts as 0 for every model.

    Args:
        rankings: RANKINGS of one model.
        judgments: JUDGMENTS.
    """
    relevance = pa.table(
        {
            "query_id": judgments["query_id"],
            "passage_id": judgments["passage_id"],
            "grade": pc.subtract(judgments["grade"], pa.scalar(1, pa.int8())),
        }
    )
    own = relevance.filter(pc.is_in(relevance["query_id"], rankings["query_id"].combine_chunks()))
    rows = per_query(rankings, own, JUDGED_METRICS)
    return [{**row, "value": float(row["value"]) / _BEST} if row["metric"] == "dcg@5" else row for row in rows]
