"""The interface of a judge: it turns pairs into judgments, which are cached under its fingerprint."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import pyarrow as pa

from pyrite.spec import ConfiguredJudge

if TYPE_CHECKING:
    from pyrite.judges.calibration import Calibration

GRADES = (1, 2, 3, 4)

#: The lowest grade of a relevant passage. Relevant passages are never negatives, and reset the count for ``patience``.
RELEVANT = 3


class Pair(NamedTuple):
    """One (query, passage) pair to grade."""

    query_id: str
    passage_id: str


def pairs_of(table: pa.Table) -> list[Pair]:
    """The pairs in the columns query_id and passage_id."""
    return list(map(Pair, table["query_id"].to_pylist(), table["passage_id"].to_pylist()))


class Judgment(NamedTuple):
    """A grade from 1 (irrelevant) to 4 (answers fully), and its cost.

    ``distribution``: the probabilities of the grades 1 to 4, if the judge gives them. ``context``: the passage's
    context as the judge read it. ``latency``: in seconds. ``attempts``: number of requests for the grade; if the judge
    asks several questions, for the one that took the most. ``score``: of a reranker; its grade and expected grade
    assume that 0 is irrelevant and 1 answers fully. ``calibrated``: the expected grade after calibration, if there is
    one (``judges.calibration``).
    """

    pair: Pair
    grade: int
    distribution: tuple[float, float, float, float] | None
    context: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    latency: float = 0.0
    attempts: int = 1
    score: float | None = None
    calibrated: float | None = None

    @property
    def expected(self) -> float:
        """The expected grade, 1.0 to 4.0.

        The calibrated one; else the probability-weighted mean of the grades, or 1 + 3 * score; else the grade.
        """
        if self.calibrated is not None:
            return self.calibrated
        if self.distribution is not None:
            return sum(grade * p for grade, p in zip(GRADES, self.distribution, strict=True))
        return float(self.grade) if self.score is None else expected_of_score(self.score)

    @property
    def raw(self) -> float:
        """What a calibration maps: the score, or else the expected grade before calibration."""
        return self.score if self.score is not None else self._replace(calibrated=None).expected

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The uncalibrated judgment in a row of ``tables.JUDGMENTS``."""
        distribution = None if row["p1"] is None else (row["p1"], row["p2"], row["p3"], row["p4"])
        others = (row[name] for name in ("context", "prompt_tokens", "cached_tokens", "latency", "attempts", "score"))
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
            "score": self.score,
        }


def short(fingerprint: str) -> str:
    """A fingerprint with 12 digits of its digest, as in names of files and in messages."""
    head, dash, digest = fingerprint.rpartition("-")
    return head + dash + digest[:12]


def graded_by(fingerprint: str, calibration: str | None) -> str:
    """Identifies a judge and its calibration (a digest) in published tables."""
    return f"{fingerprint}-{calibration[:16]}" if calibration else fingerprint


def expected_of_score(score: float) -> float:
    """The expected grade of a reranker's score, if 0 means grade 1 and 1 means grade 4. Other scores are clipped."""
    return 1 + 3 * min(1.0, max(0.0, score))


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

    #: Whether the judge grades by the answer key, and not by the texts of pairs.
    reads_key: ClassVar[bool] = False

    #: The section of the run file with the judge's settings, for messages.
    section = "judge"
    #: Identifies everything that decides a grade, except the pair. Judgments are cached under it.
    fingerprint: str
    #: Maximum number of concurrent calls of ``grade``.
    in_flight: int
    #: Maps what ``grade`` returns to the judgments that the run uses; None: they are used as they are.
    calibration: "Calibration | None" = None

    @classmethod
    def open(cls, judge: ConfiguredJudge) -> Self:
        """Open the judge with these settings. Sends no request.

        Raises:
            UserError: the judge's settings are wrong.
        """
        del judge
        raise TypeError(f"{cls.__name__} cannot be opened from a run's settings")

    def load_key(self, queries: pa.Table, passages: pa.Table, qrels: pa.Table) -> None:
        """Load the answer key. The judge stage calls this once, if ``reads_key``.

        Args:
            queries: QUERIES.
            passages: the columns passage_id and parents of PASSAGES.
            qrels: QRELS.
        """
        del queries, passages, qrels

    def load(self, queries: pa.Table, passages: pa.Table) -> None:
        """Load the texts of pairs, in addition to those that were loaded before.

        Args:
            queries: the columns query_id and text of QUERIES.
            passages: the columns passage_id, context and text of PASSAGES. A passage may have several rows.
        """
        del queries, passages

    def unload(self, query_ids: Iterable[str]) -> None:
        """Free the texts of the pairs of these queries."""
        del query_ids

    @classmethod
    def fingerprint_of(cls, judge: ConfiguredJudge) -> str:
        """The fingerprint of the judge with these settings, without opening it."""
        del judge
        return cls.fingerprint

    @classmethod
    def requests_per_pair(cls, judge: ConfiguredJudge) -> int:
        """Number of requests to the judge's server per pair, without retries."""
        del judge
        return 1

    @classmethod
    def external(cls, judge: ConfiguredJudge) -> Mapping[str, Callable[[], str]]:
        """Digests of files that grades depend on, by their names in ``plan.STAGES["judge"].external``."""
        del judge
        return {}

    @property
    def graded_by(self) -> str:
        """Identifies, in published tables, everything that decides a grade: the fingerprint and the calibration."""
        return graded_by(self.fingerprint, self.calibration.digest if self.calibration else None)

    @property
    def stats(self) -> Mapping[str, Any]:
        """Counts and details of the grading, for the step's summary."""
        return {}

    def context(self, pair: Pair) -> str:
        """The context that the judge reads before the passage. Cached judgments of another context are not used."""
        del pair
        return ""

    def fit(self, first_candidates: Callable[[], pa.Table], range_max: int, queries: Collection[str]) -> None:
        """Adapt the judge to the run, before it grades. The judge stage calls this in every shard and iteration.

        Args:
            first_candidates: reads the candidates of iteration 1 (``tables.CANDIDATES``, all shards), whose scores are
                the base model's.
            range_max: the number of ranks that retrieve returns.
            queries: the ids of the shard's queries. The judge need not keep candidates of others.

        Raises:
            UserError: the judge's settings do not fit the run.
        """
        del first_candidates, range_max, queries

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
