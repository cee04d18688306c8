"""Groups of queries that are not independent: the units that confidence intervals and tests resample.

Questions about one topic share its passages and its vocabulary, so a model that learns the topic gains on all of them.
Resampling single queries ignores that, and its intervals are too narrow.
"""

import pyarrow as pa

from pyrite.identity import normalise

#: ``{query id: cluster}``. A cluster is named after its smallest query id.
Clusters = dict[str, str]


def by_group(queries: pa.Table) -> Clusters:
    """The cluster of each query: all queries of the group that ``prepare`` put into one split.

    If the data set assigns the splits, queries have no group, and the queries of a topic are a cluster: a few shared
    passages could connect nearly all queries of such a data set. A query without group and topic is its own cluster.

    Args:
        queries: QUERIES table.
    """
    columns = (queries[name].to_pylist() for name in ("query_id", "group", "topic"))
    first: dict[tuple[str, str], str] = {}
    key_of = {query: _key(query, group, topic) for query, group, topic in zip(*columns, strict=True)}
    for query in sorted(key_of):
        first.setdefault(key_of[query], query)
    return {query: first[key] for query, key in key_of.items()}


def _key(query: str, group: str | None, topic: str | None) -> tuple[str, str]:
    if group is not None:
        return "group", group
    name = normalise(topic or "")
    return ("topic", name) if name else ("query", query)
