"""The data set's own answer key as judge: perfect on what it knows, blind to all else, and free."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pyrite.identity import normalise
from pyrite.judges.base import GRADES, Judgment, Pair, StatelessJudge

#: A topic and a type, as they are compared.
Place = tuple[str, str]


class LabelsJudge(StatelessJudge):
    """Grades by the answer key.

    4: the passage is known to answer the query; 3: it stands in another document of the query's topic and type;
    2: it is of the query's topic; 1: otherwise. Topics and types that are not given match nothing. A query that was
    asked under several topics or types is of each of them.
    """

    fingerprint = "labels-v2"
    shared = False  # another run has another answer key
    in_flight = 1

    def __init__(self, queries: pa.Table, passages: pa.Table, qrels: pa.Table):
        """The tables as ``pyrite.tables`` describes them."""
        self._relevant = set(zip(qrels["query_id"].to_pylist(), qrels["passage_id"].to_pylist(), strict=True))
        self._passages: dict[str, set[Place]] = {}
        answers: dict[str, Place] = {}
        for row in passages.select(["passage_id", "parents"]).to_pylist():
            places = [(parent["document_id"], _place(parent)) for parent in row["parents"]]
            self._passages[row["passage_id"]] = {place for _, place in places}
            answers.update(places)
        # Of equal questions the table keeps one's topic and type, and the ids of all. Sources that give topics name a
        # question and the document that answers it alike.
        self._queries = {
            row["query_id"]: {_place(row), *(answers[key] for key in row["question_ids"] if key in answers)}
            for row in queries.select(["query_id", "topic", "type", "question_ids"]).to_pylist()
        }

    async def grade(self, pair: Pair) -> Judgment:
        """The pair's grade, all certainty on it."""
        grade = self._grade(pair)
        one, two, three, four = (1.0 if grade == g else 0.0 for g in GRADES)
        return Judgment(pair, grade, (one, two, three, four))

    def _grade(self, pair: Pair) -> int:
        if pair in self._relevant:
            return 4
        asked = {place for place in self._queries[pair.query_id] if place[0]}
        found = self._passages[pair.passage_id]
        if any(kind for _, kind in asked & found):
            return 3
        return 2 if {topic for topic, _ in asked} & {topic for topic, _ in found} else 1


def _place(row: Mapping[str, Any]) -> Place:
    return normalise(row["topic"]), normalise(row["type"])
