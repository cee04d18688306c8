"""Decides when a query needs no more judgments (judge.stop example), from the candidates and the mining rules."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import groupby

import pyarrow as pa

from pyrite.judges.session import Finished, Graded
from pyrite.spec import MineSpec
from pyrite.splitting import draw
from pyrite.training import mining
from pyrite.training.mining import Candidate

#: Known answers that are judged per iteration, although mining does not need their grades. They check the judge.
KNOWN_SAMPLE = 100


def sample_known_answers(candidates: pa.Table, qrels: pa.Table) -> Mapping[str, set[str]]:
    """At most ``KNOWN_SAMPLE`` known answers among the ``candidates``, by query. The same for all shards."""
    names = ["query_id", "passage_id"]
    known = qrels.select(names).join(candidates.select(names), names, join_type="left semi")
    pairs = zip(*(known[name].to_pylist() for name in names), strict=True)
    found: defaultdict[str, set[str]] = defaultdict(set)
    for query, passage in sorted(pairs, key=lambda pair: draw(0, " ".join(pair)))[:KNOWN_SAMPLE]:
        found[query].add(passage)
    return found


def final_examples(
    spec: MineSpec,
    candidates: pa.Table,
    known: Mapping[str, AbstractSet[str]],
    judged_relevant: Mapping[str, AbstractSet[str]],
    is_duplicate: Callable[[str, str], bool],
) -> Finished:
    """Whether the examples of a query are final (``mining.examples_are_final``), for a judging session.

    Args:
        candidates: CANDIDATES of the session's queries.
        known: their known answers.
        judged_relevant: passages that earlier iterations judged relevant, by query.
        is_duplicate: whether two passage ids are near-duplicates.
    """
    by_query = {
        query: [
            Candidate(
                row["passage_id"], row["rank"], row["score"], None, None, row["passage_id"] in known.get(query, ())
            )
            for row in rows
        ]
        for query, rows in groupby(candidates.to_pylist(), key=lambda row: row["query_id"])
    }

    def finished(query_id: str, graded: Mapping[str, Graded], pending: Sequence[str]) -> bool:
        judged = [
            c._replace(**graded[c.passage_id]._asdict()) if c.passage_id in graded else c for c in by_query[query_id]
        ]
        relevant = {*known.get(query_id, ()), *judged_relevant.get(query_id, ())}
        return mining.examples_are_final(judged, set(pending), relevant, spec, is_duplicate)

    return finished
