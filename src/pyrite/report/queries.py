"""Per-query results on test: rank changes of the first relevant passage, and the largest gains and losses."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite.evaluation.clusters import Clusters
from pyrite.evaluation.selection import BASE
from pyrite.evaluation.significance import Comparison, compare

#: Number of ranks that are searched for the first relevant passage.
DEPTH = 10
#: Number of queries shown as gained, and as lost.
SHOWN = 10
#: Characters shown of a passage.
PASSAGE_CHARS = 1500
#: A query type with fewer queries gets no confidence interval: it would be too wide to be useful.
MIN_QUERIES_FOR_INTERVAL = 20
#: The rank used in comparisons for "not among the first 10".
_BEYOND = 10**9

#: ``{model: {metric: {query id: value}}}``
PerQuery = dict[str, dict[str, dict[str, float]]]
#: ``{query id: {passage id: rank or grade}}``
ByQuery = dict[str, dict[str, int]]


def rank_changes(rankings: pa.Table, qrels: pa.Table, ids: list[str], other: str) -> dict[str, Any]:
    """Rank of the first relevant passage under the base model and under ``other``, counted over queries.

    Returns:
        ``pairs`` holds [rank before, rank after, queries], with None for a rank beyond the first 10. ``improved``,
        ``unchanged``, ``worsened`` and ``neither`` (not among the first 10 of either model) are numbers of queries.
    """
    relevant = _by_query(qrels, "grade")
    before, after = (_first_relevant(_ranks(rankings, model), relevant, ids) for model in (BASE, other))
    pairs = Counter((before[query], after[query]) for query in ids)
    sortable = [(b or _BEYOND, a or _BEYOND, count) for (b, a), count in pairs.items()]
    return {
        "pairs": [[b, a, count] for (b, a), count in sorted(pairs.items(), key=str)],
        "improved": sum(count for b, a, count in sortable if a < b),
        "unchanged": sum(count for b, a, count in sortable if a == b < _BEYOND),
        "worsened": sum(count for b, a, count in sortable if a > b),
        "neither": pairs[None, None],
    }


def compare_by_query(
    base: Mapping[str, float], other: Mapping[str, float], resamples: int, seed: int, clusters: Clusters
) -> Comparison:
    """Compare the values of the queries in ``base``, by query id. A query without a cluster is its own."""
    ids = sorted(base)
    one, two = (np.array([each[query] for query in ids]) for each in (base, other))
    return compare(one, two, resamples, seed, [clusters.get(query, query) for query in ids])


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as a dictionary, with None for undefined values."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    result: dict[str, Any] = plain(asdict(comparison))
    return result


def by_type(
    queries: pa.Table, test: PerQuery, other: str, resamples: int, seed: int, clusters: Clusters
) -> list[dict[str, Any]]:
    """MRR@5 per query type, the most frequent type first, with the confidence interval of the difference."""
    types = _column_by_id(queries, "type")
    before, after = test[BASE]["mrr@5"], test[other]["mrr@5"]
    groups: dict[str, list[str]] = {}
    for query in sorted(before):
        groups.setdefault(types.get(query) or "", []).append(query)
    rows = []
    for name, ids in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        base, tuned = ({query: values[query] for query in ids} for values in (before, after))
        found = as_json(compare_by_query(base, tuned, resamples, seed, clusters))
        interval = found["difference_interval"]
        shown = len(ids) >= MIN_QUERIES_FOR_INTERVAL and interval["low"] is not None
        row = {key: found[key] for key in ("queries", "base", "other", "difference")}
        rows.append({"type": name, **row, "interval": interval if shown else None})
    return rows


def shown_passages(rankings: pa.Table, qrels: pa.Table) -> pa.StringArray:
    """The ids of the passages that ``extremes`` may show: the first of each model, and relevant ones.

    Args:
        rankings: RANKINGS on test.
    """
    first = rankings.filter(pc.equal(rankings["rank"], 1))
    relevant = qrels.filter(pc.is_in(qrels["query_id"], first["query_id"].combine_chunks()))
    return pa.chunked_array([*first["passage_id"].chunks, *relevant["passage_id"].chunks], pa.string()).unique()


def extremes(
    rankings: pa.Table, qrels: pa.Table, queries: pa.Table, passages: pa.Table, test: PerQuery, other: str
) -> dict[str, list[dict[str, Any]]]:
    """The queries that gained and lost most in MRR@5. Ties are broken by nDCG@10, then by query id.

    ``passages``: the ids, contexts and texts of ``shown_passages``, and perhaps others.
    """
    gains = {
        query: (
            test[other]["mrr@5"][query] - value,
            test[other]["ndcg@10"][query] - test[BASE]["ndcg@10"][query],
        )
        for query, value in test[BASE]["mrr@5"].items()
    }
    gained = sorted((q for q in gains if gains[q][0] > 0), key=lambda q: (-gains[q][0], -gains[q][1], q))
    lost = sorted((q for q in gains if gains[q][0] < 0), key=lambda q: (gains[q], q))
    shown = {"gained": gained[:SHOWN], "lost": lost[:SHOWN]}

    relevant = _by_query(qrels, "grade")
    ranks = {model: _ranks(rankings, model) for model in (BASE, other)}
    details = {name: _column_by_id(queries, name) for name in ("text", "type", "topic")}
    wanted = {query for ids in shown.values() for query in ids}
    rows = {
        query: _shown_passages(relevant.get(query, {}), ranks[BASE].get(query, {}), ranks[other].get(query, {}))
        for query in wanted
    }
    texts = _passage_texts(passages, {row["passage_id"] for found in rows.values() for row in found})
    first = {model: _first_relevant(ranks[model], relevant, sorted(wanted)) for model in ranks}
    return {
        name: [
            {
                "query_id": query,
                **{key: values.get(query, "") for key, values in details.items()},
                "base": {"value": test[BASE]["mrr@5"][query], "rank": first[BASE][query]},
                "other": {"value": test[other]["mrr@5"][query], "rank": first[other][query]},
                "passages": [{**row, **texts.get(row["passage_id"], {})} for row in rows[query]],
            }
            for query in ids
        ]
        for name, ids in shown.items()
    }


def _shown_passages(relevant: dict[str, int], before: dict[str, int], after: dict[str, int]) -> list[dict[str, Any]]:
    """The first passage of each model and the best relevant one: each passage once, with its ``roles``."""
    best_relevant = min(
        relevant,
        key=lambda passage: (-relevant[passage], after.get(passage, _BEYOND), before.get(passage, _BEYOND), passage),
        default=None,
    )
    roles = {
        "base": min(before, key=before.__getitem__, default=None),
        "other": min(after, key=after.__getitem__, default=None),
        "relevant": best_relevant,
    }
    return [
        {
            "passage_id": passage,
            "roles": [role for role, found in roles.items() if found == passage],
            "relevant": passage in relevant,
            "base_rank": before.get(passage),
            "other_rank": after.get(passage),
        }
        for passage in dict.fromkeys(roles.values())
        if passage is not None
    ]


def _passage_texts(passages: pa.Table, wanted: set[str]) -> dict[str, dict[str, str]]:
    columns = (passages.column(name).to_pylist() for name in ("passage_id", "context", "text"))
    return {
        passage: {"title": context or "", "text": _shorten(text)}
        for passage, context, text in zip(*columns, strict=True)
        if passage in wanted
    }


def _shorten(text: str) -> str:
    return text if len(text) <= PASSAGE_CHARS else f"{text[:PASSAGE_CHARS]} ..."


def _ranks(rankings: pa.Table, model: str) -> ByQuery:
    return _by_query(rankings.filter(pc.equal(rankings.column("model"), model)), "rank")


def _first_relevant(ranks: ByQuery, relevant: ByQuery, ids: list[str]) -> dict[str, int | None]:
    """Rank of the first relevant passage of every query in ``ids``; None if it is not among the first 10."""
    found = {}
    for query in ids:
        ranked, known = ranks.get(query, {}), relevant.get(query, {})
        hits = [rank for passage, rank in ranked.items() if passage in known and rank <= DEPTH]
        found[query] = min(hits, default=None)
    return found


def _by_query(table: pa.Table, column: str) -> ByQuery:
    found: ByQuery = {}
    columns = (table.column(name).to_pylist() for name in ("query_id", "passage_id", column))
    for query, passage, value in zip(*columns, strict=True):
        found.setdefault(query, {})[passage] = value
    return found


def _column_by_id(queries: pa.Table, column: str) -> dict[str, str]:
    return dict(zip(queries.column("query_id").to_pylist(), queries.column(column).to_pylist(), strict=True))
