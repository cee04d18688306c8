"""The interface of a source, and the records that it yields: documents, questions, dropped records and notes."""

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
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
    ``headings`` holds (offset in ``text``, heading) in ascending order, for texts with sections.
    """

    id: str
    text: str
    title: str = ""
    topic: str = ""
    type: str = ""
    concepts: tuple[str, ...] = ()
    headings: tuple[tuple[int, str], ...] = ()

    def title_at(self, offset: int) -> str:
        """The title of a passage that starts at ``offset``: the nearest heading at or above it, or ``title``."""
        above = bisect.bisect_right(self.headings, offset, key=lambda heading: heading[0])
        return self.headings[above - 1][1] if above else self.title


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


class DroppedRecords:
    """Number of dropped records for each reason, and the first three locations."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, where: str, reason: str) -> None:
        self.add_all(reason, 1, [where])

    def add_all(self, reason: str, count: int, first: Iterable[str]) -> None:
        """Add ``count`` records. ``first``: the locations of the first ones, at least of three if there are so many."""
        if count:
            self.counts[reason] += count
            self.examples[reason] += itertools.islice(first, 3 - len(self.examples[reason]))

    def describe(self) -> str:
        """Each reason with its count and one example, for error messages."""
        parts = [f"{reason}: {count:,}, such as {self.examples[reason][0]}" for reason, count in self.counts.items()]
        return f" (dropped: {'; '.join(parts)})" if parts else ""


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence about the source as a whole, such as a file that was not read. It is shown in prepare's summary."""

    text: str


Record = Document | Question | Dropped | Note


class Source(Protocol):
    """A data source."""

    def records(self) -> Iterator[Record]:
        """Yield every record once, in a fixed order. A UserError names the file and line that cannot be read."""
        ...

    def digest(self) -> str:
        """Hex sha256 of everything that determines the records: file contents, or a revision, and settings."""
        ...
