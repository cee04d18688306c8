"""The data set's own relevance labels as the judge: free, and exact for labelled answers only."""

from collections.abc import Mapping
from typing import Any, Self

import pyarrow as pa

from pyrite.identity import normalise
from pyrite.judges import register
from pyrite.judges.base import GRADES, Judge, Judgment, Pair
from pyrite.spec import RunSpec

#: A normalised topic and a normalised type.
Place = tuple[str, str]


@register("labels")
class LabelsJudge(Judge):
    """Grades by the relevance labels, topics and types of the data set.

    4: the passage is labelled as relevant; 3: it is from another document of the query's topic and type; 2: of the
    query's topic; 1: otherwise. An empty topic or type matches nothing. A query that the data set has under several
    topics or types matches each of them.

    Not shareable: another run has other labels.
    """

    fingerprint = "labels-v2"
    in_flight = 1

    def __init__(self, queries: pa.Table, passages: pa.Table, qrels: pa.Table):
        """The tables as ``pyrite.tables`` describes them."""
        self._relevant = set(zip(qrels["query_id"].to_pylist(), qrels["passage_id"].to_pylist(), strict=True))
        self._passages: dict[str, set[Place]] = {}
        document_places: dict[str, Place] = {}
        for row in passages.select(["passage_id", "parents"]).to_pylist():
            places = [(parent["document_id"], _place(parent)) for parent in row["parents"]]
            self._passages[row["passage_id"]] = {place for _, place in places}
            document_places.update(places)
        # A row is for all questions with its text: it has the topic and type of one, and the ids of all. A question and
        # the document that answers it have the same id in sources with topics.
        self._queries = {
            row["query_id"]: {
                _place(row),
                *(document_places[id] for id in row["question_ids"] if id in document_places),
            }
            for row in queries.select(["query_id", "topic", "type", "question_ids"]).to_pylist()
        }

    @classmethod
    def open(cls, spec: RunSpec, queries: pa.Table, passages: pa.Table, qrels: pa.Table) -> Self:
        del spec
        return cls(queries, passages, qrels)

    async def grade(self, pair: Pair) -> Judgment:
        """The pair's grade, with probability 1."""
        grade = self._grade(pair)
        one, two, three, four = (1.0 if grade == g else 0.0 for g in GRADES)
        return Judgment(pair, grade, (one, two, three, four))

    def _grade(self, pair: Pair) -> int:
        if pair in self._relevant:
            return 4
        query_places = {place for place in self._queries[pair.query_id] if place[0]}
        passage_places = self._passages[pair.passage_id]
        if any(type for _, type in query_places & passage_places):
            return 3
        return 2 if {topic for topic, _ in query_places} & {topic for topic, _ in passage_places} else 1


def _place(row: Mapping[str, Any]) -> Place:
    return normalise(row["topic"]), normalise(row["type"])
