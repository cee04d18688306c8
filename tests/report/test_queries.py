"""Rank changes of single test queries, and the queries that gained or lost most."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from pyrite.report.data import build
from pyrite.report.queries import rank_changes, shown_passages
from pyrite.tables import QRELS, RANKINGS
from report.report_factory import make


def test_gains_and_losses_are_sorted_and_have_passages() -> None:
    report = build(make(gain=0.6))
    gains = [row["other"]["value"] - row["base"]["value"] for row in report["gained"]]
    losses = [row["other"]["value"] - row["base"]["value"] for row in report["lost"]]
    assert gains == sorted(gains, reverse=True)
    assert losses == sorted(losses)
    assert all(gain > 0 for gain in gains)
    assert all(loss < 0 for loss in losses)
    assert len(gains) <= 10
    for row in report["gained"] + report["lost"]:
        roles = [role for passage in row["passages"] for role in passage["roles"]]
        assert sorted(roles) == ["base", "other", "relevant"]
        assert all(passage["text"] for passage in row["passages"])
        assert all(passage["relevant"] for passage in row["passages"] if "relevant" in passage["roles"])


def test_the_report_needs_only_the_shown_passages() -> None:
    inputs = make(gain=0.3, queries=12)
    shown = shown_passages(inputs.rankings, inputs.qrels)
    passages = inputs.passages.filter(pc.is_in(inputs.passages["passage_id"], shown))
    assert passages.num_rows < inputs.passages.num_rows
    assert build(replace(inputs, passages=passages)) == build(inputs)


def test_rank_changes_equal_counts_by_hand() -> None:
    # Passage a is relevant. Query 1: rank 3 to 1; query 2: 1 to 1; query 3: 1 to unranked; query 4: unranked in both.
    ranked = {
        ("base", "1"): "xya", ("tuned", "1"): "axy", ("base", "2"): "a", ("tuned", "2"): "a",
        ("base", "3"): "a", ("tuned", "3"): "x", ("base", "4"): "x", ("tuned", "4"): "x",
    }  # fmt: skip
    rows = [
        {"model": model, "split": "test", "query_id": query, "passage_id": passage, "rank": rank, "score": 0.5}
        for (model, query), passages in ranked.items()
        for rank, passage in enumerate(passages, 1)
    ]
    qrels = [{"query_id": query, "passage_id": "a", "grade": 1} for query in "1234"]
    found = rank_changes(
        pa.Table.from_pylist(rows, RANKINGS), pa.Table.from_pylist(qrels, QRELS), list("1234"), "tuned"
    )
    assert [found[key] for key in ("improved", "unchanged", "worsened", "neither")] == [1, 1, 1, 1]
    assert sorted(found["pairs"], key=str) == sorted([[3, 1, 1], [1, 1, 1], [1, None, 1], [None, None, 1]], key=str)
