"""The data set's own answer key as judge: perfect on what it knows, blind to all else, and free."""

import pyarrow as pa

from pyrite.identity import normalise
from pyrite.judges.base import GRADES, HoldsNothing, Judgment, Pair


class LabelsJudge(HoldsNothing):
    """Grades by the answer key.

    4: the chunk is known to answer the query; 3: it stands in another document of the query's topic and type;
    2: it is of the query's topic; 1: otherwise. Topics and types that are not given match nothing.
    """

    fingerprint = "labels-v1"
    shared = False  # another run has another answer key
    in_flight = 1

    def __init__(self, queries: pa.Table, chunks: pa.Table, qrels: pa.Table):
        """The tables as ``pyrite.tables`` describes them."""
        self._relevant = set(zip(qrels["query_id"].to_pylist(), qrels["chunk_id"].to_pylist(), strict=True))
        self._queries = {
            row["query_id"]: (normalise(row["topic"]), normalise(row["type"]))
            for row in queries.select(["query_id", "topic", "type"]).to_pylist()
        }
        self._chunks = {
            row["chunk_id"]: {(normalise(parent["topic"]), normalise(parent["type"])) for parent in row["parents"]}
            for row in chunks.select(["chunk_id", "parents"]).to_pylist()
        }

    async def grade(self, pair: Pair) -> Judgment:
        """The pair's grade, all certainty on it."""
        grade = self._grade(pair)
        one, two, three, four = (1.0 if grade == g else 0.0 for g in GRADES)
        return Judgment(pair, grade, (one, two, three, four))

    def _grade(self, pair: Pair) -> int:
        if pair in self._relevant:
            return 4
        topic, kind = self._queries[pair.query_id]
        places = self._chunks[pair.chunk_id]
        if not topic or all(topic != place for place, _ in places):
            return 1
        return 3 if kind and (topic, kind) in places else 2
