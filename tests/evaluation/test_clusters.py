"""Clusters of queries: the groups that prepare puts into one split, or topics if it assigned no split."""

import pyarrow as pa

from pyrite import tables
from pyrite.evaluation.clusters import by_group


def queries(**rows: tuple[str | None, str]) -> pa.Table:
    found = [
        {"query_id": query, "group": group, "topic": topic, "split": "test"} for query, (group, topic) in rows.items()
    ]
    return pa.Table.from_pylist(found, tables.QUERIES)


def test_queries_of_a_group_are_one_cluster() -> None:
    found = by_group(queries(c=("g", "Gout"), b=("g", "Acne"), a=("other", "Acne")))
    assert found == {"a": "a", "b": "b", "c": "b"}


def test_without_a_group_the_topic_decides() -> None:
    found = by_group(queries(a=(None, "Gout"), b=(None, ""), c=(None, " gout "), d=(None, ""), e=("Gout", "gout")))
    assert found == {"a": "a", "b": "b", "c": "a", "d": "d", "e": "e"}
