"""Metrics by a judge's grades: values computed by hand, and agreement with an answer key."""

from math import log2

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.evaluation.judged import judged_per_query
from pyrite.evaluation.scoring import per_query


def ranked(**passages: str) -> pa.Table:
    """Rankings: the passages of each query are letters, best first."""
    rows = [
        {"query_id": query, "passage_id": passage, "rank": rank, "score": -float(rank)}
        for query, letters in passages.items()
        for rank, passage in enumerate(letters, 1)
    ]
    return pa.Table.from_pylist(rows)


def graded(grades: dict[tuple[str, str], int]) -> pa.Table:
    columns = [[query for query, _ in grades], [passage for _, passage in grades], list(grades.values())]
    return pa.table([columns[0], columns[1], pa.array(columns[2], pa.int8())], ["query_id", "passage_id", "grade"])


def by_metric(rows: list[dict[str, str | float]], query: str) -> dict[str, float]:
    return {str(row["metric"]): float(row["value"]) for row in rows if row["query_id"] == query}


def test_grades_give_gains_and_grade_3_is_relevant() -> None:
    grades = {("q", "a"): 2, ("q", "b"): 3, ("q", "w"): 4, ("none", "a"): 2, ("other", "a"): 4}
    rows = judged_per_query(ranked(q="abu", none="a"), graded(grades))
    found = by_metric(rows, "q")
    dcg = (1 + 2 / log2(3)) / 3
    assert found["mrr@5"] == 0.5
    assert found["dcg@5"] == pytest.approx(dcg)
    assert found["ndcg@10"] == pytest.approx(3 * dcg / (3 + 2 / log2(3) + 1 / log2(4)))
    assert (found["p@5"], found["r@5"]) == (0.2, 0.5)
    assert by_metric(rows, "none")["mrr@5"] == 0, "a query without a relevant passage counts"
    assert {row["query_id"] for row in rows} == {"q", "none"}


@given(st.permutations("abcdefgh"), st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_grades_1_and_4_are_a_binary_answer_key(order: list[str], relevant: set[str]) -> None:
    rankings = ranked(q="".join(order))
    grades = {("q", passage): 4 if passage in relevant else 1 for passage in order}
    key = graded({pair: 1 for pair, grade in grades.items() if grade == 4})
    found, expected = judged_per_query(rankings, graded(grades)), per_query(rankings, key)
    assert by_metric(found, "q") == pytest.approx(by_metric(expected, "q"))
