"""Compares the chosen models of two runs on their common test queries."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyrite.errors import UserError
from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.significance import Comparison, compare
from pyrite.report import formatting


@dataclass(frozen=True)
class ReportComparison:
    """The chosen model of run ``b`` compared with that of run ``a``.

    Attributes:
        a, b: names of the runs.
        model_a, model_b: the chosen model of each run.
        queries: number of test queries that both runs have.
        excluded: number of test queries that only one run has.
        rows: the comparison per metric, on the common queries.
        notes: reasons why the runs are not fully comparable.
    """

    a: str
    b: str
    model_a: str
    model_b: str
    queries: int
    excluded: int
    rows: dict[str, Comparison]
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
    rows = {
        metric: compare(
            np.array([values_a[metric][query] for query in common]),
            np.array([values_b[metric][query] for query in common]),
            max(a["resamples"], b["resamples"]),
            a["seed"],
        )
        for metric in METRICS
        if metric in values_a and metric in values_b
    }
    excluded = len(ids_a ^ ids_b)
    return ReportComparison(
        a=a["name"],
        b=b["name"],
        model_a=a["chosen"],
        model_b=b["chosen"],
        queries=len(common),
        excluded=excluded,
        rows=rows,
        notes=_notes(a, b, len(common), excluded),
    )


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
    if a["base_model"] != b["base_model"]:
        notes.append(f"The base models differ: {a['base_model']} and {b['base_model']}.")
    return notes
