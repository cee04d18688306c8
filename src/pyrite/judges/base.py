"""The interface of a judge: it turns pairs into judgments, which are cached under its fingerprint."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

import pyarrow as pa

from pyrite.spec import RunSpec

GRADES = (1, 2, 3, 4)

#: The lowest grade of a relevant passage. Relevant passages are never negatives, and reset the count for ``patience``.
RELEVANT = 3


class Pair(NamedTuple):
    """One (query, passage) pair to grade."""

    query_id: str
    passage_id: str


class Judgment(NamedTuple):
    """A grade from 1 (irrelevant) to 4 (answers fully), and its cost.

    ``distribution``: the probabilities of the grades 1 to 4, if the judge gives them. ``context``: the passage's
    context as the judge read it. ``latency``: in seconds.
    """

    pair: Pair
    grade: int
    distribution: tuple[float, float, float, float] | None
    context: str = ""
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
        """The judgment in a row of ``tables.JUDGMENTS``."""
        distribution = None if row["p1"] is None else (row["p1"], row["p2"], row["p3"], row["p4"])
        others = (row[name] for name in ("context", "prompt_tokens", "cached_tokens", "latency", "attempts"))
        return cls(Pair(row["query_id"], row["passage_id"]), row["grade"], distribution, *others)

    def row(self, fingerprint: str) -> dict[str, Any]:
        """This judgment, by the judge with that ``fingerprint``, as a row of ``tables.JUDGMENTS``."""
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
            "context": self.context,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "latency": self.latency,
            "attempts": self.attempts,
        }


class Missing(NamedTuple):
    """A pair that could not be graded. It never gets a default grade. ``kind``: the reason as a metric's label."""

    pair: Pair
    reason: str
    attempts: int
    kind: str


class Judge(ABC):
    """Grades pairs. Use it as an async context manager. The defaults fit a judge without a server."""

    #: Whether grades depend only on the fingerprint and the two texts. If so, they are cached and other runs use them.
    shareable: ClassVar[bool] = False

    #: Identifies everything that decides a grade, except the pair. Judgments are cached under it.
    fingerprint: str
    #: Maximum number of concurrent calls of ``grade``.
    in_flight: int

    @classmethod
    def open(cls, spec: RunSpec, queries: pa.Table, passages: pa.Table, qrels: pa.Table) -> Self:
        """Open the judge that ``spec`` describes, for the tables that prepare wrote. Sends no request.

        Raises:
            UserError: the judge's settings are wrong.
        """
        del spec, queries, passages, qrels
        raise TypeError(f"{cls.__name__} cannot be opened from a run's settings")

    @classmethod
    def fingerprint_of(cls, spec: RunSpec) -> str:
        """The fingerprint of the judge that ``spec`` describes, without opening it."""
        del spec
        return cls.fingerprint

    @classmethod
    def external(cls, spec: RunSpec) -> Mapping[str, Callable[[], str]]:
        """Digests of files that grades depend on, by their names in ``plan.STAGES["judge"].external``."""
        del spec
        return {}

    @property
    def stats(self) -> Mapping[str, Any]:
        """Counts and details of the grading, for the step's summary."""
        return {}

    def context(self, passage_id: str) -> str:
        """The context that the judge reads before the passage. Cached judgments of another context are not used."""
        del passage_id
        return ""

    def fit(self, first_candidates: Callable[[], pa.Table]) -> None:
        """Adapt the judge to the run, before it grades. The judge stage calls this in every shard and iteration.

        Args:
            first_candidates: reads the candidates of iteration 1 (``tables.CANDIDATES``, all shards), whose scores are
                the base model's.

        Raises:
            UserError: the judge's settings do not fit the run.
        """
        del first_candidates

    async def ready(self) -> None:
        """Wait until the judge can grade at full speed, so that start-up is not timed. Raises as ``grade`` does."""
        return None

    @abstractmethod
    async def grade(self, pair: Pair) -> Judgment | Missing:
        """Grade ``pair``.

        Raises:
            UserError: the settings or the server are wrong, and a retry cannot help.
            PyriteError: no server responds.
        """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
