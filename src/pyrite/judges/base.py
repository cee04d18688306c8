"""What a judge is: pairs in, judgments out, and a fingerprint that says whose judgments they are."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

GRADES = (1, 2, 3, 4)


class Pair(NamedTuple):
    """One (query, chunk) pair to grade."""

    query_id: str
    chunk_id: str


class Judgment(NamedTuple):
    """A grade from 1 (irrelevant) to 4 (answers fully), and the judge's distribution over the grades 1 to 4."""

    pair: Pair
    grade: int
    distribution: tuple[float, float, float, float]

    @property
    def expected(self) -> float:
        """The probability-weighted mean grade, 1.0 to 4.0."""
        return sum(grade * p for grade, p in zip(GRADES, self.distribution, strict=True))


class Judge(Protocol):
    """Grades pairs. A pair that it cannot grade is left out of what it yields: a missing grade is never a grade."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that decides a grade; judgments are valid for it alone."""
        ...

    def judge(self, pairs: Iterable[Pair]) -> Iterator[Judgment]:
        """Yield the judgments of ``pairs``, in any order."""
        ...
