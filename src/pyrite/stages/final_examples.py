"""Decides when a query needs no more judgments (judge.stop example), from the candidates and the mining rules."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa

from pyrite.judges.session import Finished, Graded
from pyrite.spec import MineSpec
from pyrite.stages.inputs import passages_by_query
from pyrite.training import mining
from pyrite.training.mining import Candidate


def final_examples(spec: MineSpec, pairs: pa.Table) -> Finished:
    """Whether the examples of a query are final (``mining.examples_are_final``), for a judging session.

    Args:
        pairs: PAIRS of the session's queries.
    """
    is_duplicate = mining.duplicate_check(mining.shingles_by_id(pairs))
    relevant = passages_by_query(pairs.filter(pairs["relevant"]))
    by_query: defaultdict[str, list[Candidate]] = defaultdict(list)
    candidates = pairs.filter(pairs["rank"].is_valid())
    columns = (candidates[name].to_pylist() for name in ("query_id", "passage_id", "rank", "score", "known"))
    for query, passage, rank, score, known in zip(*columns, strict=True):
        by_query[query].append(Candidate(passage, rank, score, None, None, known))

    def finished(query_id: str, graded: Mapping[str, Graded], pending: Sequence[str]) -> bool:
        judged = [
            c._replace(**graded[c.passage_id]._asdict()) if c.passage_id in graded else c for c in by_query[query_id]
        ]
        return mining.examples_are_final(judged, set(pending), relevant[query_id], spec, is_duplicate)

    return finished
