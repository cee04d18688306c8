"""What a source yields: documents, questions, and what it had to leave out and why."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

Split = Literal["train", "val", "test"]

#: Why a record is left out, in the words that all sources share.
NO_ANSWER = "question without an answer"
NO_QUESTION = "empty question"
NO_TEXT = "document without text"


@dataclass(frozen=True, slots=True)
class Document:
    """A source text, before it is cut into passages. ``id`` is unique in its source; offsets refer to ``text``."""

    id: str
    text: str
    title: str = ""
    topic: str = ""
    type: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the documents that answer it (document id to grade above 0, usually 1).

    ``split`` is given only where the data set itself assigns one (a BEIR folder's qrels files, the practice corpus).
    """

    id: str
    text: str
    topic: str = ""
    type: str = ""
    relevant: dict[str, int] = field(default_factory=dict)
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that was left out: ``where`` it stands (file and line, or id) and why, a short fixed phrase."""

    where: str
    reason: str


Record = Document | Question | Dropped


class Source(Protocol):
    """Where documents and questions come from."""

    def records(self) -> Iterator[Record]:
        """Yield every record once, in a fixed order. Raises UserError naming file and line of what cannot be read."""
        ...

    def digest(self) -> str:
        """Hex sha256 of all that decides what ``records`` yields: file contents, or a revision."""
        ...
