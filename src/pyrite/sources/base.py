"""The interface of a source, and the records that it yields: documents, questions and dropped records."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

Split = Literal["train", "val", "test"]

#: Reasons for dropping a record that several sources share.
NO_ANSWER = "question without an answer"
NO_QUESTION = "empty question"
NO_TEXT = "document without text"


@dataclass(frozen=True, slots=True)
class Document:
    """A text before it is cut into passages. ``id`` is unique in its source.

    ``concepts`` are ids of its subjects in a vocabulary such as UMLS. Topics with a common concept share a split.
    """

    id: str
    text: str
    title: str = ""
    topic: str = ""
    type: str = ""
    concepts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A question. ``relevant`` maps the id of each document that answers it to a grade above 0, usually 1.

    ``split`` is set only if the data set assigns one (BEIR's qrels files, the built-in sample).
    """

    id: str
    text: str
    topic: str = ""
    type: str = ""
    relevant: dict[str, int] = field(default_factory=dict)
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that was left out: its location (file and line, or id), and the reason, a short fixed phrase."""

    where: str
    reason: str


Record = Document | Question | Dropped


class Source(Protocol):
    """A data source."""

    def records(self) -> Iterator[Record]:
        """Yield every record once, in a fixed order. A UserError names the file and line that cannot be read."""
        ...

    def digest(self) -> str:
        """Hex sha256 of everything that determines the records: file contents, or a revision, and settings."""
        ...
