"""Judges queries with a cascade: the pilot, calibration of the first judge, then the pairs that it cannot decide."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pyrite.errors import PyriteError, first_error
from pyrite.evaluation.cascade import CascadeMap, ErrorRate, certain, distributions, error_rate, likely_grades
from pyrite.judges import Judge, open_judge
from pyrite.judges.base import RELEVANT, Judgment, Missing, Pair
from pyrite.judges.cache import open_cache
from pyrite.judges.cascade import CascadeSession
from pyrite.judges.session import JudgingSession, QueryPassages
from pyrite.spec import CascadeJudgeSpec, MineSpec
from pyrite.splitting import draw
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import read_candidates, read_queries
from pyrite.stages.judging import Judging


class Pilot(NamedTuple):
    """The result of the pilot. ``pairs``: those that both judges graded."""

    queries: int
    pairs: int


class CascadeJudging(Judging):
    """Judges a shard with the first judge, then, as far as that has not decided, with the second."""

    def __init__(
        self,
        ctx: StepContext,
        spec: CascadeJudgeSpec,
        session: CascadeSession,
        queries: Sequence[QueryPassages],
        known: Mapping[str, Collection[str]],
        passages: pa.Table,
        qrels: pa.Table,
    ):
        """``session``: that of the second judge, for all ``queries``. ``passages``, ``qrels``: the run's tables."""
        super().__init__(session, queries, known)
        first = ctx.spec.first_judge
        assert first is not None
        judge = open_judge(first, read_queries(ctx), passages, qrels)
        judge.fit(lambda: read_candidates(ctx, 1), ctx.spec.retrieve.range_max, [query for query, _ in queries])
        #: What the first judge grades: all pairs, except known answers whose grade mining does not need.
        self._first_queries = queries
        if not ctx.spec.judges_known_answers:
            self._first_queries = [(q, [id for id in ids if id not in known.get(q, ())]) for q, ids in queries]
        cache = open_cache(ctx.store, judge, f"{ctx.spec.name}/first-{ctx.iteration}.{ctx.step.shard}")
        total = sum(len(ids) for _, ids in self._first_queries)
        self._first = JudgingSession(judge, cache, total, spec.max_missing, ctx.progress)
        if len(queries) <= spec.pilot:
            ctx.progress.message(f"note: {spec.idle_first(len(queries))}")
        self._spec, self._mine, self._progress = spec, ctx.spec.mine, ctx.progress
        self._pilot: Pilot | None = None
        self._first_counts: dict[str, Any] = {}

    async def judge(self) -> None:
        first = self._first
        await first.load_cached({query for query, _ in self.queries})
        async with first.judge:
            # A wrong setting of the second judge fails now, not after hours of the first judge's work. Without such
            # work, the second may have cached judgments only, and then needs no server.
            if first.judge.shareable and not first.all_cached(self._first_queries):
                await _wait_until_ready(first.judge, self.session.judge)
            self._progress.begin(first.total, "pairs judged by the first judge")
            await first.judge_all(self._first_queries)
        await first.flush()
        table = first.results(self._first_queries)
        first.merge()
        counts = {"judged": table.num_rows, "cached": first.cached, "missing": len(first.missing)}
        self._first_counts = {"judge": first.judge.graded_by, **counts, **first.judge.stats}
        self._progress.begin(self.session.total, "pairs judged")
        self._pilot = await judge_cascade(self.session, self.queries, self.known, table, self._spec, self._mine)

    async def flush(self) -> None:
        await self._first.flush()
        await self.session.flush()

    def missing_rows(self) -> list[dict[str, Any]]:
        """As ``Judging.missing_rows``; those of the first judge, as long as the second misses none."""
        return self.session.missing_rows() or self._first.missing_rows()

    def results(self, judged: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
        """As ``Judging.results``. Raises PyriteError if the first judge contradicts the second too often."""
        session = self.session
        audit = audit_of(session)
        check_drift(audit, self._spec.max_drift)
        first = self._first.judge.graded_by
        table = with_decided(judged, session.missing, session.decided.values(), first, self.queries)
        return table, {
            "by_first": table.num_rows - judged.num_rows,
            "first": self._first_counts,
            "pilot": self._pilot._asdict() if self._pilot else None,
            "audit": audit.as_json(),
        }


async def judge_cascade(
    session: CascadeSession,
    queries: Sequence[QueryPassages],
    known: Mapping[str, Collection[str]],
    first: pa.Table,
    spec: CascadeJudgeSpec,
    mine: MineSpec,
) -> Pilot:
    """Judge the passages of all queries with the second judge, as far as the first judge has not decided them.

    Args:
        session: the open session of the second judge. Its ``decided`` and ``audit`` are set after the pilot.
        known: as in ``JudgingSession.judge_all``.
        first: JUDGMENTS of the first judge.

    Raises:
        PyriteError: as ``JudgingSession.judge_all``.
    """
    drawn = sorted((query for query, _ in queries), key=lambda query: draw(0, f"pilot {query}"))
    in_pilot = set(drawn[: spec.pilot])
    pilot = [each for each in queries if each[0] in in_pilot]
    await session.judge_all(pilot, known)
    await session.flush()
    expected = dict(zip(_pairs(first), first["expected"].to_pylist(), strict=True))
    seconds = session.results(pilot)
    both = [
        (expected[pair], grade)
        for pair, grade in zip(_pairs(seconds), seconds["grade"].to_pylist(), strict=True)
        if pair in expected
    ]
    if both:
        fitted = CascadeMap.fit(np.array([each for each, _ in both]), np.array([grade for _, grade in both]))
        rest = first.filter(pa.array([query not in in_pilot for query in first["query_id"].to_pylist()], pa.bool_()))
        session.audit = spec.audit
        session.decided = decide(rest, fitted, known, spec.tolerance, mine)
    await session.judge_all([each for each in queries if each[0] not in in_pilot], known)
    return Pilot(len(pilot), len(both))


async def _wait_until_ready(*judges: Judge) -> None:
    """Wait for the servers of all ``judges``. Raises as ``Judge.ready``."""
    try:
        async with asyncio.TaskGroup() as group:
            for judge in judges:
                group.create_task(judge.ready())
    except BaseExceptionGroup as error:
        raise first_error(error) from error


def decide(
    first: pa.Table, fitted: CascadeMap, known: Mapping[str, Collection[str]], tolerance: float, mine: MineSpec
) -> dict[Pair, Judgment]:
    """The calibrated judgments of the pairs that the first judge decides.

    Mining decides whether a passage is relevant, whether it may be a negative, and, if the query has no known answer to
    use as the positive, whether it may be a positive. The first judge must be certain of each.
    """
    at_least = fitted(first["expected"].to_numpy().astype(np.float64))
    always = {RELEVANT, mine.negative_grade + 1}
    negatives = certain(at_least, always, tolerance)
    positives = certain(at_least, always | {mine.min_positive_grade}, tolerance)
    has_known = np.array(
        [mine.uses_known_answers and bool(known.get(query)) for query in first["query_id"].to_pylist()], dtype=bool
    )
    chosen = np.flatnonzero(np.where(has_known, negatives, positives))
    grades, probabilities = likely_grades(at_least), distributions(at_least)
    decided = {}
    for index, row in zip(chosen.tolist(), first.take(chosen).to_pylist(), strict=True):
        one, two, three, four = probabilities[index].tolist()
        judgment = Judgment.from_row(row)
        decided[judgment.pair] = judgment._replace(grade=int(grades[index]), distribution=(one, two, three, four))
    return decided


def audit_of(session: CascadeSession) -> ErrorRate:
    """How often the second judge contradicts the first on whether a passage is relevant, by the audit sample."""
    wrong = [(each.first >= RELEVANT) != (each.second >= RELEVANT) for each in session.audited]
    return error_rate(wrong, [each.pair.query_id for each in session.audited])


def check_drift(audit: ErrorRate, max_drift: float) -> None:
    """Check the first judge's error rate.

    Raises:
        PyriteError: the lower bound of its 95% interval exceeds ``max_drift``.
    """
    if audit.pairs and audit.interval.low > max_drift:
        raise PyriteError(
            f"judge.second contradicts judge.first in {audit.errors} of {audit.pairs} audited pairs: {audit.share:.0%}"
            f", 95% interval {audit.interval.low:.0%} to {audit.interval.high:.0%}, more than judge.max_drift "
            f"({max_drift:.0%}) allows. Lower judge.tolerance, raise judge.pilot, or use judge.second alone: its "
            "judgments are stored."
        )


def with_decided(
    seconds: pa.Table,
    missing: Iterable[Missing],
    decided: Iterable[Judgment],
    fingerprint: str,
    queries: Sequence[QueryPassages],
) -> pa.Table:
    """The judgments of both judges, in the order of ``queries``. A pair that both graded has the second's judgment.

    Args:
        seconds: judgments of the second judge.
        missing: pairs that the second judge could not grade, also those of the audit.
        fingerprint: of the first judge.
    """
    requested = {*_pairs(seconds), *(each.pair for each in missing)}
    rows = [each.row(fingerprint) for each in decided if each.pair not in requested]
    position = {Pair(query, id): i for i, (query, id) in enumerate((q, id) for q, ids in queries for id in ids)}
    both = pa.concat_tables([seconds, pa.Table.from_pylist(rows, seconds.schema)])
    return both.take(np.argsort([position[pair] for pair in _pairs(both)], kind="stable"))


def _pairs(table: pa.Table) -> list[Pair]:
    return list(map(Pair, table["query_id"].to_pylist(), table["passage_id"].to_pylist()))
