"""Metrics against values computed by hand from their definitions."""

from math import log2

import pyarrow as pa
import pytest

from pyrite import tables
from pyrite.evaluation.scoring import METRICS, per_query

# Ranking, grades, and mrr@5, dcg@5, ndcg@10, p@5, r@5.
CASES = {
    "only relevant passage first": ("a x y z w", {"a": 1}, (1, 1, 1, 1 / 5, 1)),
    "only relevant passage third": ("x y a z w", {"a": 1}, (1 / 3, 1 / 2, 1 / 2, 1 / 5, 1)),
    "just inside the cutoff": ("v x y z a", {"a": 1}, (1 / 5, 1 / log2(6), 1 / log2(6), 1 / 5, 1)),
    "beyond 5, within 10": ("u v x y z a", {"a": 1}, (0, 0, 1 / log2(7), 0, 0)),
    "beyond 10": ("1 2 3 4 5 6 7 8 9 10 a", {"a": 1}, (0, 0, 0, 0, 0)),
    "two of three found": (
        "a x b y z",
        {"a": 1, "b": 1, "c": 1},
        (1, 1 + 1 / 2, (1 + 1 / 2) / (1 + 1 / log2(3) + 1 / 2), 2 / 5, 2 / 3),
    ),
    "graded": (
        "x a b y z",
        {"a": 3, "b": 1},
        (1 / 2, 3 / log2(3) + 1 / 2, (3 / log2(3) + 1 / 2) / (3 + 1 / log2(3)), 2 / 5, 1),
    ),
    "fewer than five retrieved": ("a", {"a": 1, "b": 1}, (1, 1, 1 / (1 + 1 / log2(3)), 1 / 5, 1 / 2)),
    "nothing retrieved": ("", {"a": 1}, (0, 0, 0, 0, 0)),
}


def rankings(rows: list[tuple[str, str, int, float]]) -> pa.Table:
    return pa.Table.from_pylist(
        [dict(zip(tables.CANDIDATES.names, row, strict=True)) for row in rows], tables.CANDIDATES
    )


def qrels(grades: dict[str, dict[str, int]]) -> pa.Table:
    rows = [{"query_id": q, "passage_id": c, "grade": g} for q, of in grades.items() for c, g in of.items()]
    return pa.Table.from_pylist(rows, tables.QRELS)


def values(ranked: pa.Table, relevant: pa.Table) -> dict[tuple[str, str], float]:
    return {(str(row["query_id"]), str(row["metric"])): float(row["value"]) for row in per_query(ranked, relevant)}


@pytest.mark.parametrize("name", CASES)
def test_each_metric_equals_its_value_by_hand(name: str) -> None:
    ranked, grades, expected = CASES[name]
    rows = [("q", passage, rank, 1 - rank / 100) for rank, passage in enumerate(ranked.split(), 1)]
    got = values(rankings(rows), qrels({"q": grades}))
    assert [got["q", metric] for metric in METRICS] == pytest.approx(expected)


def test_scoring_many_queries_equals_scoring_each() -> None:
    ranked = rankings(
        [
            (name, passage, rank, 0.5)
            for name, (passages, _, _) in CASES.items()
            for rank, passage in enumerate(passages.split(), 1)
        ]
    )
    got = values(ranked, qrels({name: grades for name, (_, grades, _) in CASES.items()}))
    for name, (_, _, expected) in CASES.items():
        assert [got[name, metric] for metric in METRICS] == pytest.approx(expected), name


def test_rank_decides_despite_ties_and_row_order() -> None:
    # By passage id, ascending or descending, "m" would be neither first nor last.
    rows = [("q", "z", 3, 0.5), ("q", "m", 1, 0.5), ("q", "a", 2, 0.5)]
    got = values(rankings(rows), qrels({"q": {"m": 1}}))
    assert got["q", "mrr@5"] == got["q", "dcg@5"] == got["q", "ndcg@10"] == 1


def test_deep_ranks_stay_in_order() -> None:
    rows = [("q", f"c{rank}", rank, 0.1) for rank in range(5000, 0, -1)]
    assert values(rankings(rows), qrels({"q": {"c5": 1, "c5000": 1}}))["q", "mrr@5"] == pytest.approx(0.2)


def test_exactly_the_queries_with_qrels_have_rows() -> None:
    rows = [("known", "a", 1, 0.9), ("without-qrels", "a", 1, 0.9)]
    got = per_query(rankings(rows), qrels({"known": {"a": 1}, "nothing-retrieved": {"b": 2}}))
    assert {row["query_id"] for row in got} == {"known", "nothing-retrieved"}
    assert len(got) == 2 * len(METRICS)
    assert {row["value"] for row in got if row["query_id"] == "nothing-retrieved"} == {0.0}


def test_without_rankings_all_metrics_are_zero() -> None:
    got = per_query(rankings([]), qrels({"q": {"a": 1}}))
    assert [row["value"] for row in got] == [0.0] * len(METRICS)


def test_rows_fit_the_per_query_table() -> None:
    got = per_query(rankings([("q", "a", 1, 0.9)]), qrels({"q": {"a": 1}}))
    table = pa.Table.from_pylist([{"model": "base", "split": "test", **row} for row in got], tables.PER_QUERY)
    assert table.num_rows == len(METRICS)
