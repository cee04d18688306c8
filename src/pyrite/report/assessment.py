"""The results on the pool that evaluate.judge graded, and by whom."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pyrite.evaluation.clusters import Clusters
from pyrite.evaluation.judged import JUDGED_METRICS
from pyrite.evaluation.selection import BASE
from pyrite.judges.base import GRADES, RELEVANT
from pyrite.judges.evaluator import family_notes
from pyrite.report.queries import PerQuery, as_json, compare_by_query
from pyrite.spec import RunSpec


@dataclass(frozen=True, eq=False)
class Assessment:
    """The grades of evaluate.judge, and the metrics by them.

    Attributes:
        summary: the summary of the step assess.
        judgments: JUDGMENTS table of the pool on validation and test.
        val, test: PER_QUERY tables as in ReportInputs, by these grades (``evaluation.judged``).
    """

    summary: Mapping[str, Any]
    judgments: pa.Table
    val: pa.Table
    test: pa.Table


def build(
    spec: RunSpec, assessment: Assessment, test: PerQuery, rankings: pa.Table, clusters: Clusters
) -> dict[str, Any]:
    """The section of the report.

    Args:
        test: ``assessment.test`` as nested dictionaries.
        rankings: RANKINGS on test of the models in ``test``.

    Returns:
        ``chooses``: whether these grades choose the model and are the headline. ``unjudged``: the share of each model's
        first 10 passages without a grade, which counts as not relevant. ``without_relevant``: number of test queries
        without a passage of grade 3 or 4 in the pool. ``means`` and ``comparisons`` are as in the report, on test.
    """
    summary = assessment.summary
    columns = (assessment.judgments[name].to_pylist() for name in ("query_id", "passage_id", "grade"))
    grades = {(query, passage): grade for query, passage, grade in zip(*columns, strict=True)}
    answered = {query for (query, _), grade in grades.items() if grade >= RELEVANT}
    ids = sorted(test[BASE]["mrr@5"])

    def compared(base: Mapping[str, float], other: Mapping[str, float]) -> dict[str, Any]:
        return as_json(compare_by_query(base, other, spec.evaluate.resamples, spec.seed, clusters))

    return {
        "model": summary["model"],
        "prompt": summary["prompt"],
        "fingerprint": summary["judge"],
        "training_judge": spec.judge.label,
        "notes": family_notes(spec),
        "chooses": spec.chooses_by_judge,
        "pairs": summary["pairs"],
        "missing": summary["missing"],
        "grades": {str(grade): summary["grades"][str(grade)] for grade in GRADES},
        "queries": len(ids),
        "without_relevant": sum(query not in answered for query in ids),
        "unjudged": _unjudged(rankings, grades),
        "means": {
            model: {metric: float(np.mean(list(test[model][metric].values()))) for metric in JUDGED_METRICS}
            for model in test
        },
        "comparisons": {
            model: {metric: compared(test[BASE][metric], test[model][metric]) for metric in JUDGED_METRICS}
            for model in test
            if model != BASE
        },
    }


def _unjudged(rankings: pa.Table, grades: Mapping[tuple[str, str], int]) -> dict[str, float]:
    """The share of each model's ranked passages that have no grade."""
    missing: dict[str, list[bool]] = {}
    columns = (rankings[name].to_pylist() for name in ("model", "query_id", "passage_id"))
    for model, query, passage in zip(*columns, strict=True):
        missing.setdefault(model, []).append((query, passage) not in grades)
    return {model: float(np.mean(each)) for model, each in missing.items()}
