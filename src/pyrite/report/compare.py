"""Compares the chosen models of two runs on their common queries.

If users choose the run with the best test score among several, that score is too high (selection on test). Validation
scores are shown too, because such choices should use them.
"""

from dataclasses import dataclass
from typing import Any

from pyrite.errors import UserError
from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.significance import Comparison
from pyrite.report import formatting
from pyrite.report.queries import compare_by_query

#: ``{metric: {query id: value}}``
ByMetric = dict[str, dict[str, float]]


@dataclass(frozen=True)
class ReportComparison:
    """The chosen model of run ``b`` compared with that of run ``a``.

    Attributes:
        a, b: names of the runs.
        model_a, model_b: the chosen model of each run.
        queries: number of test queries that both runs have.
        excluded: number of test queries that only one run has.
        rows: the comparison per metric, on the common test queries.
        val_rows: the same for MRR@5 and DCG@5 on the common validation queries; empty if there are none.
        notes: reasons why the runs are not fully comparable.
    """

    a: str
    b: str
    model_a: str
    model_b: str
    queries: int
    excluded: int
    rows: dict[str, Comparison]
    val_rows: dict[str, Comparison]
    notes: list[str]


def compare_reports(a: dict[str, Any], b: dict[str, Any]) -> ReportComparison:
    """Compare two reports, as returned by ``data.build``, paired by query.

    Raises:
        UserError: the runs have no common test queries.
    """
    values_a, values_b = (report["per_query"][report["chosen"]] for report in (a, b))
    ids_a, ids_b = (set(values["mrr@5"]) for values in (values_a, values_b))
    common = sorted(ids_a & ids_b)
    if not common:
        raise UserError(
            f"Cannot compare runs {a['name']} and {b['name']}: they have no test query in common "
            f"({len(ids_a):,} and {len(ids_b):,} test queries). Compare runs with the same source, seed and prepare "
            "settings."
        )
    excluded = len(ids_a ^ ids_b)
    return ReportComparison(
        a=a["name"],
        b=b["name"],
        model_a=a["chosen"],
        model_b=b["chosen"],
        queries=len(common),
        excluded=excluded,
        rows=_rows(a, b, values_a, values_b),
        val_rows=_rows(a, b, *(report.get("per_query_val", {}).get(report["chosen"], {}) for report in (a, b))),
        notes=_notes(a, b, len(common), excluded),
    )


def _rows(a: dict[str, Any], b: dict[str, Any], values_a: ByMetric, values_b: ByMetric) -> dict[str, Comparison]:
    """The comparison of each metric that both have, on the common queries, clustered as in run ``a``."""
    rows = {}
    for metric in METRICS:
        common = values_a.get(metric, {}).keys() & values_b.get(metric, {}).keys()
        if common:
            one, other = ({query: values[metric][query] for query in common} for values in (values_a, values_b))
            resamples = max(a["resamples"], b["resamples"])
            rows[metric] = compare_by_query(one, other, resamples, a["seed"], a.get("clusters", {}))
    return rows


def _notes(a: dict[str, Any], b: dict[str, Any], common: int, excluded: int) -> list[str]:
    notes = []
    if excluded:
        queries = formatting.plural(common, "test query", "test queries")
        notes.append(
            f"Only the {queries} that both runs have are compared; {excluded:,} excluded. A test query of one run may "
            "be a training query of the other."
        )
    if a["test"]["corpus_sha256"] != b["test"]["corpus_sha256"]:
        notes.append("The runs search different passages, which may explain part of the difference.")
    elif not excluded and a["test"]["qrels_sha256"] != b["test"]["qrels_sha256"]:
        notes.append("The runs have different relevant passages, which may explain part of the difference.")
    if any(formatting.chooses_by_judge(report) for report in (a, b)):
        notes.append("The comparison is by known answers. The result of a run on documents is by evaluate.judge.")
    if a["base_model"] != b["base_model"]:
        notes.append(f"The base models differ: {a['base_model']} and {b['base_model']}.")
    return notes
