"""Comparison of two runs on their common test queries."""

import pytest

from pyrite.errors import UserError
from pyrite.report.compare import compare_reports
from pyrite.report.data import build
from report.report_factory import make


def test_a_run_does_not_differ_from_itself() -> None:
    report = build(make())
    found = compare_reports(report, report)
    assert found.queries == 60
    assert found.notes == []
    assert all(row.difference == 0 and row.p_value == 1 for row in found.rows.values())


def test_runs_without_a_common_test_query_are_rejected() -> None:
    one, other = build(make()), build(make())
    for metrics in other["per_query"].values():
        for metric, values in metrics.items():
            metrics[metric] = {f"other-{query}": value for query, value in values.items()}
    with pytest.raises(UserError, match=r"no test query in common.*same source, seed"):
        compare_reports(one, other)


def test_runs_are_compared_on_their_common_queries() -> None:
    one, other = build(make()), build(make(queries=40))
    found = compare_reports(one, other)
    assert (found.queries, found.excluded) == (40, 20)
    assert "20 excluded" in found.notes[0]


def test_different_corpus_and_base_model_are_noted() -> None:
    one, other = build(make()), build(make())
    other["test"] = {**other["test"], "corpus_sha256": "another"}
    other["base_model"] = "another"
    notes = compare_reports(one, other).notes
    assert "different passages" in notes[0]
    assert "base models differ" in notes[1]


def test_a_run_chosen_by_a_judge_is_noted() -> None:
    one, other = build(make()), build(make())
    other["judged"] = {"chooses": True}
    assert compare_reports(one, other).notes == [
        "The comparison is by known answers. The result of a run on documents is by evaluate.judge."
    ]


def test_validation_scores_are_compared_too() -> None:
    small, large = build(make(gain=0.4)), build(make(gain=2.5))
    found = compare_reports(small, large)
    assert list(found.val_rows) == ["mrr@5", "dcg@5"]
    row = found.val_rows["mrr@5"]
    assert row.base == pytest.approx(small["means"]["val"][small["chosen"]]["mrr@5"])
    assert row.other == pytest.approx(large["means"]["val"][large["chosen"]]["mrr@5"])
    assert (row.queries, row.clusters) == (60, 20)
    for old in (small, large):
        del old["per_query_val"], old["clusters"]
    assert compare_reports(small, large).val_rows == {}
