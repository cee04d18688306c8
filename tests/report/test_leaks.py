"""The results without the test queries whose answers are near training data."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pyrite import tables
from pyrite.report.data import ReportInputs, build
from pyrite.report.leaks import checks
from pyrite.report.pages import report_page
from pyrite.splitting import affected_queries
from pyrite.training.duplicates import MIN_SHINGLES
from pyrite.training.mining import shingles
from report.report_factory import make, with_title_pairs


def with_near_duplicates(inputs: ReportInputs, queries: int) -> tuple[ReportInputs, set[str]]:
    """The same run, in which a relevant passage of the first test ``queries`` has a near-duplicate; and their ids."""
    tested = sorted(set(inputs.test["query_id"].to_pylist()))[:queries]
    relevant = {row["passage_id"]: row["query_id"] for row in inputs.qrels.to_pylist() if row["query_id"] in tested}
    rows = [
        {**row, "split": "test", "near_duplicate": "other" if row["passage_id"] in relevant else None}
        for row in inputs.passages.to_pylist()
    ]
    passages = pa.Table.from_pylist(rows, tables.PASSAGES)
    found = affected_queries(passages, inputs.queries, inputs.qrels)["test"]
    affected = {row["query_id"] for row in inputs.qrels.to_pylist() if row["passage_id"] in relevant}
    return replace(inputs, affected=found), affected


def test_a_second_row_leaves_out_affected_queries() -> None:
    inputs, affected = with_near_duplicates(make(), 5)
    report = build(inputs)
    found = report["unaffected"]
    left = [query for query in report["per_query"]["base"]["mrr@5"] if query not in affected]
    assert (found["affected"], found["queries"]) == (60 - len(left), len(left))
    assert found["affected"] >= 5
    for model, metrics in report["per_query"].items():
        mean = np.mean([metrics["mrr@5"][query] for query in left])
        assert found["means"][model]["mrr@5"] == pytest.approx(mean)
        if model != "base":
            assert found["changes"][model]["mrr@5"] == pytest.approx(mean / found["means"]["base"]["mrr@5"] - 1)
    page = report_page(report)
    assert page.count(f"without the {found['affected']} affected") == len(report["models"])
    assert f"{found['affected']} of 60 test queries are affected" in page


def test_without_affected_queries_there_is_one_row() -> None:
    report = build(with_near_duplicates(make(), 0)[0])
    assert report["unaffected"] is None
    page = report_page(report)
    assert "affected" not in page
    assert "Not checked: paraphrases." in page
    assert "title-passage" not in page


def test_title_pairs_of_all_iterations_are_reported() -> None:
    inputs = with_title_pairs(make(iterations=2), 1200)
    assert "Training also saw 2,400 title-passage pairs of the complete corpus" in report_page(build(inputs))


def test_a_note_says_that_all_queries_are_affected() -> None:
    report = build(with_near_duplicates(make(), 60)[0])
    assert (report["unaffected"]["affected"], report["unaffected"]["queries"]) == (60, 0)
    page = report_page(report)
    assert "60 of 60 test queries are affected" in page
    assert "No test query is left" in page
    assert "without the 60 affected" not in page


def test_the_checks_state_the_rule_for_short_texts() -> None:
    for given in (True, False):
        assert "under 14 words must also be about as long, and under 5 words equal" in checks(given, 0)
    for words, count in ((13, 9), (14, MIN_SHINGLES), (4, 1)):
        assert len(shingles(" ".join(f"w{n}" for n in range(words)))) == count
