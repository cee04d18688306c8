"""Generated questions, and their conversion to and from tables."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pyrite import tables
from pyrite.identity import query_id
from pyrite.sources.base import Split


@dataclass(frozen=True, slots=True)
class GeneratedQuestion:
    """A question that an LLM generated.

    Attributes:
        passage_ids: the passages from which it was generated, so they answer it; empty for a few-shot question.
        origins: for each time that it was generated, the passage id or "few-shot-<number>".
        group: the group of its first passage, as in the PASSAGES table; None if that has none, or without a passage.
    """

    text: str
    split: Split
    topic: str
    type: str
    passage_ids: tuple[str, ...]
    origins: tuple[str, ...]
    group: str | None = None

    @property
    def id(self) -> str:
        """The query id that prepare would assign."""
        return query_id(self.text)


def to_tables(questions: Sequence[GeneratedQuestion]) -> tuple[pa.Table, pa.Table]:
    """Convert questions to QUERIES and QRELS, in their order. The passages in ``passage_ids`` have grade 1."""
    queries = [
        {
            "query_id": question.id,
            "text": question.text,
            "topic": question.topic,
            "type": question.type,
            "split": question.split,
            "group": question.group,
            "question_ids": list(question.origins),
        }
        for question in questions
    ]
    qrels = [
        {"query_id": question.id, "passage_id": passage_id, "grade": 1}
        for question in questions
        for passage_id in question.passage_ids
    ]
    return pa.Table.from_pylist(queries, tables.QUERIES), pa.Table.from_pylist(qrels, tables.QRELS)


def from_tables(queries: pa.Table, qrels: pa.Table) -> list[GeneratedQuestion]:
    """Convert QUERIES and QRELS that ``to_tables`` created to questions."""
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
            row["group"],
        )
        for row in queries.to_pylist()
    ]
