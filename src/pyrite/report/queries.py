"""The test queries one by one: where the first relevant passage stood, and which gained or lost most."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite.evaluation.selection import BASE
from pyrite.evaluation.significance import compare

if TYPE_CHECKING:
    from pyrite.report.data import PerQuery, ReportInputs

#: How deep a first relevant passage is looked for.
DEPTH = 10
#: How many queries of each kind are shown, and how many characters of a passage.
SHOWN = 10
PASSAGE_CHARS = 1500
#: A type with fewer queries gets no interval: it would be too wide to say anything.
FEW = 5

#: ``{query id: {passage id: rank or grade}}``
ByQuery = dict[str, dict[str, int]]


def shifts(rankings: pa.Table, qrels: pa.Table, ids: list[str], other: str) -> dict[str, Any]:
    """How often the first relevant passage went from which rank to which; None: not within the first 10."""
    relevant = _by_query(qrels, "grade")
    before, after = (_first(_of_model(rankings, model), relevant, ids) for model in (BASE, other))
    pairs: dict[tuple[int | None, int | None], int] = {}
    for query in ids:
        pair = before[query], after[query]
        pairs[pair] = pairs.get(pair, 0) + 1
    far = 10**9  # sorts "not within 10" behind every rank
    moved = [((b or far), (a or far), count) for (b, a), count in pairs.items()]
    return {
        "pairs": [[b, a, count] for (b, a), count in sorted(pairs.items(), key=lambda p: str(p))],
        "rose": sum(count for b, a, count in moved if a < b),
        "same": sum(count for b, a, count in moved if a == b and b < far),
        "fell": sum(count for b, a, count in moved if a > b),
        "neither": pairs.get((None, None), 0),
    }


def by_type(queries: pa.Table, test: "PerQuery", other: str, resamples: int, seed: int) -> list[dict[str, Any]]:
    """MRR@5 per question type, the most frequent first; the interval is of the difference."""
    types = _column_by_id(queries, "type")
    before, after = test[BASE]["mrr@5"], test[other]["mrr@5"]
    groups: dict[str, list[str]] = {}
    for query in sorted(before):
        groups.setdefault(types.get(query) or "", []).append(query)
    rows = []
    for name, ids in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        base, tuned = (np.array([of[query] for query in ids]) for of in (before, after))
        row: dict[str, Any] = {
            "type": name,
            "queries": len(ids),
            "base": float(base.mean()),
            "other": float(tuned.mean()),
            "difference": float((tuned - base).mean()),
            "interval": None,
        }
        if len(ids) >= FEW:
            found = compare(base, tuned, resamples, seed).difference_interval
            row["interval"] = {"low": found.low, "high": found.high}
        rows.append(row)
    return rows


def extremes(inputs: "ReportInputs", test: "PerQuery", other: str) -> dict[str, list[dict[str, Any]]]:
    """The queries that gained most and lost most in MRR@5; nDCG@10 and then the id decide between equals."""
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

    relevant = _by_query(inputs.qrels, "grade")
    ranks = {model: _of_model(inputs.rankings, model) for model in (BASE, other)}
    details = {name: _column_by_id(inputs.queries, name) for name in ("text", "type", "topic")}
    wanted = {query for ids in shown.values() for query in ids}
    passages = {
        query: _passages(relevant.get(query, {}), ranks[BASE].get(query, {}), ranks[other].get(query, {}))
        for query in wanted
    }
    passage_texts = _passage_texts(inputs.passages, {row["passage_id"] for rows in passages.values() for row in rows})
    firsts = {model: _first(ranks[model], relevant, sorted(wanted)) for model in ranks}
    return {
        name: [
            {
                "query_id": query,
                **{key: of.get(query, "") for key, of in details.items()},
                "base": {"value": test[BASE]["mrr@5"][query], "rank": firsts[BASE][query]},
                "other": {"value": test[other]["mrr@5"][query], "rank": firsts[other][query]},
                "passages": [{**row, **passage_texts.get(row["passage_id"], {})} for row in passages[query]],
            }
            for query in ids
        ]
        for name, ids in shown.items()
    }


def _passages(relevant: dict[str, int], before: dict[str, int], after: dict[str, int]) -> list[dict[str, Any]]:
    """The base's first passage, the other's first and the relevant one, each once, with its parts."""
    beyond = 10**9
    answer = min(
        relevant,
        key=lambda c: (-relevant[c], after.get(c, beyond), before.get(c, beyond), c),
        default=None,
    )
    parts = [
        ("base", min(before, key=before.__getitem__, default=None)),
        ("other", min(after, key=after.__getitem__, default=None)),
        ("relevant", answer),
    ]
    rows: dict[str, dict[str, Any]] = {}
    for part, passage in parts:
        if passage is None:
            continue
        row = rows.setdefault(
            passage,
            {
                "passage_id": passage,
                "parts": [],
                "relevant": passage in relevant,
                "base_rank": before.get(passage),
                "other_rank": after.get(passage),
            },
        )
        row["parts"].append(part)
    return list(rows.values())


def _passage_texts(passages: pa.Table, wanted: set[str]) -> dict[str, dict[str, str]]:
    columns = (passages.column(name).to_pylist() for name in ("passage_id", "title", "text"))
    return {
        passage: {"title": title or "", "text": _cut(text)}
        for passage, title, text in zip(*columns, strict=True)
        if passage in wanted
    }


def _cut(text: str) -> str:
    return text if len(text) <= PASSAGE_CHARS else f"{text[:PASSAGE_CHARS]} ..."


def _of_model(rankings: pa.Table, model: str) -> ByQuery:
    return _by_query(rankings.filter(pc.equal(rankings.column("model"), model)), "rank")


def _first(ranks: ByQuery, relevant: ByQuery, ids: list[str]) -> dict[str, int | None]:
    """Rank of the first relevant passage of every query in ``ids``; None: not within the first 10."""
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
