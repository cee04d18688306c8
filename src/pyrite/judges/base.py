"""What a judge is: a pair in, a judgment out, and a fingerprint that says whose judgments they are."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

GRADES = (1, 2, 3, 4)

#: The least grade that says "relevant": patience counts grades below it, and mining never makes a negative above.
RELEVANT = 3


class Pair(NamedTuple):
    """One (query, passage) pair to grade."""

    query_id: str
    passage_id: str


class Judgment(NamedTuple):
    """A grade from 1 (irrelevant) to 4 (answers fully), and what it cost.

    ``distribution`` is the judge's over the grades 1 to 4; None where it gives none. ``latency`` is in seconds.
    """

    pair: Pair
    grade: int
    distribution: tuple[float, float, float, float] | None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    latency: float = 0.0
    attempts: int = 1

    @property
    def expected(self) -> float:
        """The probability-weighted mean grade, 1.0 to 4.0; without a distribution, the grade."""
        if self.distribution is None:
            return float(self.grade)
        return sum(grade * p for grade, p in zip(GRADES, self.distribution, strict=True))

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The judgment that ``row`` made a row of."""
        distribution = None if row["p1"] is None else (row["p1"], row["p2"], row["p3"], row["p4"])
        costs = (row[name] for name in ("prompt_tokens", "cached_tokens", "latency", "attempts"))
        return cls(Pair(row["query_id"], row["passage_id"]), row["grade"], distribution, *costs)

    def row(self, fingerprint: str) -> dict[str, Any]:
        """This judgment of the judge called ``fingerprint`` as a row of ``tables.JUDGMENTS``."""
        p1, p2, p3, p4 = self.distribution or (None, None, None, None)
        return {
            "query_id": self.pair.query_id,
            "passage_id": self.pair.passage_id,
            "grade": self.grade,
            "p1": p1,
            "p2": p2,
            "p3": p3,
            "p4": p4,
            "expected": self.expected,
            "judge": fingerprint,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "latency": self.latency,
            "attempts": self.attempts,
        }


class Missing(NamedTuple):
    """A pair that could not be graded, and why. A missing grade is never a grade.

    ``kind`` is the reason in one word of a few, for metrics.
    """

    pair: Pair
    reason: str
    attempts: int
    kind: str


class Judge(Protocol):
    """Grades pairs one at a time; up to ``in_flight`` are asked for at once. To be used as a context manager."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of what decides a grade beside the pair's ids; judgments are valid for it alone."""
        ...

    @property
    def shared(self) -> bool:
        """Whether a judgment depends on the fingerprint and the two texts alone, so that other runs may use it."""
        ...

    @property
    def in_flight(self) -> int:
        """How many pairs it is worth asking for at once."""
        ...

    @property
    def stats(self) -> Mapping[str, Any]:
        """What a person should know of how the pairs were graded, for the step's summary."""
        ...

    async def ready(self) -> None:
        """Wait until pairs can be graded at full speed, where that is to be timed. Raises as ``grade`` does."""
        ...

    async def grade(self, pair: Pair) -> Judgment | Missing:
        """Grade ``pair``.

        Raises:
            UserError: asking again cannot help (the key is refused, the model is not there, ...).
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class StatelessJudge:
    """What a judge that opens nothing and has nothing to tell is besides its grades: for it to inherit."""

    @property
    def stats(self) -> Mapping[str, Any]:
        return {}

    async def ready(self) -> None:
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
