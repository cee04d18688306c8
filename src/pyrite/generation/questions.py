"""A question that an LLM made, and the tables that hold such questions."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pyrite import tables
from pyrite.identity import query_id
from pyrite.sources.base import Split


@dataclass(frozen=True, slots=True)
class GeneratedQuestion:
    """One question.

    Attributes:
        passage_ids: the passages that it was made from, which therefore answer it; none for a few-shot question.
        origins: for each time it was made, the passage's id, or "few-shot-<number>".
    """

    text: str
    split: Split
    topic: str
    type: str
    passage_ids: tuple[str, ...]
    origins: tuple[str, ...]

    @property
    def id(self) -> str:
        """The query id, as prepare would give it."""
        return query_id(self.text)


def to_tables(made: Sequence[GeneratedQuestion]) -> tuple[pa.Table, pa.Table]:
    """The questions as QUERIES and QRELS, in their order. A passage that a question was made from has grade 1."""
    queries = [
        {
            "query_id": question.id,
            "text": question.text,
            "topic": question.topic,
            "type": question.type,
            "split": question.split,
            "question_ids": list(question.origins),
        }
        for question in made
    ]
    qrels = [
        {"query_id": question.id, "passage_id": passage, "grade": 1}
        for question in made
        for passage in question.passage_ids
    ]
    return pa.Table.from_pylist(queries, tables.QUERIES), pa.Table.from_pylist(qrels, tables.QRELS)


def from_tables(queries: pa.Table, qrels: pa.Table) -> list[GeneratedQuestion]:
    """What ``to_tables`` was given."""
    passages: dict[str, list[str]] = defaultdict(list)
    for row in qrels.to_pylist():
        passages[row["query_id"]].append(row["passage_id"])
    return [
        GeneratedQuestion(
            row["text"],
            row["split"],
            row["topic"],
            row["type"],
            tuple(passages[row["query_id"]]),
            tuple(row["question_ids"]),
        )
        for row in queries.to_pylist()
    ]
