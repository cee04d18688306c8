"""Groups of queries that are not independent: the units that confidence intervals and tests resample.

Questions about one topic share its passages and its vocabulary, so a model that learns the topic gains on all of them.
Resampling single queries ignores that, and its intervals are too narrow.
"""

import pyarrow as pa
from scipy.cluster.hierarchy import DisjointSet

from pyrite.identity import normalise

#: ``{query id: cluster}``. A cluster is named after its smallest query id.
Clusters = dict[str, str]


def by_topic(queries: pa.Table) -> Clusters:
    """The cluster of each query: all queries of a topic. A query without a topic is a cluster of its own.

    Args:
        queries: QUERIES table.
    """
    return _components(queries, [])


def by_group(queries: pa.Table, qrels: pa.Table, passages: pa.Table) -> Clusters:
    """The cluster of each query, at most as large as the group that ``prepare`` puts into one split.

    Queries are connected if they share a topic, a relevant passage, or a relevant passage's topic or document.
    ``prepare`` also joins topics by concepts, which the tables do not hold. Use it only if ``prepare`` assigned the
    splits: in a data set with splits of its own, a few shared passages could connect nearly all queries.

    Args:
        queries, qrels, passages: QUERIES, QRELS and PASSAGES tables.
    """
    known = set(queries["query_id"].to_pylist())
    edges: list[tuple[tuple[str, str], tuple[str, str]]] = []
    relevant: set[str] = set()
    for query, passage in zip(qrels["query_id"].to_pylist(), qrels["passage_id"].to_pylist(), strict=True):
        if query in known:
            edges.append((("query", query), ("passage", passage)))
            relevant.add(passage)
    for passage, parents in zip(passages["passage_id"].to_pylist(), passages["parents"].to_pylist(), strict=True):
        if passage in relevant:
            for parent in parents:
                edges.append((("passage", passage), ("document", parent["document_id"])))
                if topic := normalise(parent["topic"] or ""):
                    edges.append((("passage", passage), ("topic", topic)))
    return _components(queries, edges)


def _components(queries: pa.Table, edges: list[tuple[tuple[str, str], tuple[str, str]]]) -> Clusters:
    """The connected components of queries, topics and ``edges``."""
    groups, ids = DisjointSet(), queries["query_id"].to_pylist()
    topics = zip(ids, queries["topic"].to_pylist(), strict=True)
    connections = [(("query", query), ("topic", normalise(topic))) for query, topic in topics if normalise(topic or "")]
    for query in ids:
        groups.add(("query", query))
    for one, other in connections + edges:
        groups.add(one)
        groups.add(other)
        groups.merge(one, other)
    name_of: dict[tuple[str, str], str] = {}
    for query in sorted(ids):
        name_of.setdefault(groups["query", query], query)
    return {query: name_of[groups["query", query]] for query in ids}
