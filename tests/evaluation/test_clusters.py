"""Clusters of queries: by topic, and by the groups that prepare keeps in one split."""

import pyarrow as pa

from pyrite import tables
from pyrite.evaluation.clusters import by_group, by_topic


def queries(**topics: str) -> pa.Table:
    rows = [{"query_id": query, "topic": topic, "split": "test"} for query, topic in topics.items()]
    return pa.Table.from_pylist(rows, tables.QUERIES)


def test_queries_without_a_topic_are_their_own_cluster() -> None:
    found = by_topic(queries(a="Gout", b="", c=" gout ", d=""))
    assert found == {"a": "a", "b": "b", "c": "a", "d": "d"}


def test_a_shared_passage_or_document_joins_groups() -> None:
    passages = pa.Table.from_pylist(
        [
            {"passage_id": name, "parents": [{"document_id": document, "topic": topic}]}
            for name, document, topic in (
                ("p1", "d1", "Gout"),
                ("p2", "d1", ""),
                ("p3", "d3", "acne"),
                ("p4", "d4", ""),
            )
        ],
        tables.PASSAGES,
    )
    pairs = [("a", "p1"), ("b", "p2"), ("c", "p3"), ("d", "p4"), ("e", "p4"), ("unknown", "p4")]
    qrels = pa.Table.from_pylist([{"query_id": q, "passage_id": p, "grade": 1} for q, p in pairs], tables.QRELS)
    found = by_group(queries(a="", b="", c="", d="", e="", f="ACNE"), qrels, passages)
    assert found == {"a": "a", "b": "a", "c": "c", "d": "d", "e": "d", "f": "c"}
