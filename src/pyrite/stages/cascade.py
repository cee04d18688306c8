"""Judges queries with a cascade: the pilot, calibration of the first judge, then the pairs that it cannot decide."""

import asyncio
import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pyrite.errors import PyriteError, first_error
from pyrite.evaluation.cascade import CascadeMap, ErrorRate, certain, distributions, error_rate, likely_grades
from pyrite.judges import Judge
from pyrite.judges.base import RELEVANT, Judgment, Missing, Pair, pairs_of
from pyrite.judges.cache import open_cache
from pyrite.judges.cascade import CascadeSession
from pyrite.judges.session import Block, JudgingSession, JudgmentCounts, QueryPassages
from pyrite.spec import CascadeJudgeSpec, MineSpec
from pyrite.splitting import draw
from pyrite.stages.blocks import of_queries
from pyrite.stages.judging import Judging, SessionBlocks, Shard


class Pilot(NamedTuple):
    """The result of the pilot. ``pairs``: those that both judges graded."""

    queries: int
    pairs: int


class CascadeJudging(Judging):
    """Judges a shard with the first judge, then the pairs that it has not decided with the second."""

    def __init__(self, shard: Shard, first: Judge):
        """``shard``: with the session of the second judge."""
        super().__init__(shard)
        ctx, pairs = self._ctx, self._pairs
        assert isinstance(ctx.spec.judge, CascadeJudgeSpec)
        self._spec = spec = ctx.spec.judge
        first_cache = open_cache(ctx.store, first, f"{ctx.spec.name}/first-{ctx.iteration}.{ctx.step.shard}")
        # The first judge does not grade known answers whose grades mining does not need.
        total = pairs.selected if ctx.spec.judges_known_answers else pairs.selected_unknown
        self._first = JudgingSession(first, first_cache, total, spec.max_missing, ctx.progress)
        self._blocks_of_first = SessionBlocks(self._first, first_cache, pairs, self._spill("first-cached"))
        #: Calibrated judgments of the first judge, and those of the second in the pilot.
        self._first_results, self._pilot_results = self._spill("first"), self._spill("pilot")
        self._in_pilot = pa.array([], pa.string())
        #: The queries of the blocks in memory, also those of the pilot.
        self._queries: dict[int, list[QueryPassages]] = {}
        self._pilot: Pilot | None = None
        self._first_counts: dict[str, Any] = {}
        if len(pairs.query_ids) <= spec.pilot:
            ctx.progress.message(f"note: {spec.idle_first(len(pairs.query_ids))}")

    async def judge(self) -> None:
        await self._judge_with_first()
        self._ctx.progress.begin(self.session.total, "pairs judged")
        self._in_pilot = pa.array(draw_pilot(self._pairs.query_ids.to_pylist(), self._spec.pilot), pa.string())
        both: list[tuple[float, int]] = []

        def finish_pilot(block: Block) -> None:
            seconds = self.session.results(block)
            both.extend(graded_by_both(self._pairs.rows_of(self._first_results, seconds["query_id"]), seconds))
            self._pilot_results.append(seconds, self._pairs.block_of(seconds["query_id"]))
            self._blocks.unload(block)

        await self.session.judge_blocks(map(self._load, self._pairs.read_queries(self._in_pilot)), finish_pilot)
        await self.session.flush()
        self._pilot_results.finish()
        self._pilot = Pilot(len(self._in_pilot), len(both))
        fitted = fit(both)
        self.session.audit = self._spec.audit
        await self.session.judge_blocks(self._other_blocks(fitted), self._finish)

    async def _judge_with_first(self) -> None:
        first = self._first
        await self._blocks_of_first.copy_cached()
        async with first.judge:
            # A wrong setting of the second judge fails now, not after hours of the first judge's work. Without such
            # work, the second may have cached judgments only, and then needs no server.
            if first.judge.shareable and not self._first_is_cached():
                await _wait_until_ready(first.judge, self.session.judge)
            self._ctx.progress.begin(first.total, "pairs judged by the first judge")
            judged = JudgmentCounts()

            def finish(block: Block) -> None:
                table = first.results(block)
                judged.add(table)
                self._first_results.append(table, np.full(table.num_rows, block.number))
                self._blocks_of_first.unload(block)

            await first.judge_blocks(self._load_for_first(), finish)
        self._first_results.finish()
        await first.flush()
        first.merge()
        counts = {"judged": judged.rows, "cached": first.cached, "missing": len(first.missing)}
        self._first_counts = {"judge": first.judge.graded_by, **counts, **first.judge.stats}

    def _load_for_first(self) -> Iterator[Block]:
        with_known = self._ctx.spec.judges_known_answers
        for number, pairs in enumerate(self._pairs.read()):
            queries = self._pairs.selection.queries(pairs, with_known=with_known)
            yield self._blocks_of_first.load(pairs, queries=queries, number=number)

    def _first_is_cached(self) -> bool:
        """Whether all judgments of the first judge are cached."""
        for block in self._load_for_first():
            self._blocks_of_first.unload(block)
            if not self._first.all_cached(block):
                return False
        return True

    def _other_blocks(self, fitted: CascadeMap | None) -> Iterator[Block]:
        """The blocks without the pilot's queries, with what the first judge decides."""
        for number, pairs in enumerate(self._pairs.read()):
            self._queries[number] = self._pairs.selection.queries(pairs)
            block = self._load(of_queries(pairs, self._in_pilot, invert=True), number=number)
            if fitted:
                first = of_queries(self._first_results.read(number), self._in_pilot, invert=True)
                block.decided = decide(first, fitted, block.known, self._spec.tolerance, self._ctx.spec.mine)
            yield block

    def _finish(self, block: Block) -> None:
        pilot = self._pilot_results.read(block.number)
        seconds = pa.concat_tables([self.session.results(block), pilot])
        first, queries = self._first.judge.graded_by, self._queries.pop(block.number)
        self._write(seconds, with_decided(seconds, block.missing, block.decided.values(), first, queries))
        self._blocks.unload(block)

    async def flush(self) -> None:
        await self._first.flush()
        await self.session.flush()

    def missing_rows(self) -> list[dict[str, Any]]:
        """As ``Judging.missing_rows``; those of the first judge, as long as the second misses none."""
        return self.session.missing_rows() or self._first.missing_rows()

    def summary(self) -> dict[str, Any]:
        """As ``Judging.summary``. Raises PyriteError if the first judge contradicts the second too often."""
        audit = audit_of(self.session)
        check_drift(audit, self._spec.max_drift)
        return {
            "by_first": self.written.rows - self.judged.rows,
            "first": self._first_counts,
            "pilot": self._pilot._asdict() if self._pilot else None,
            "audit": audit.as_json(),
        }


def draw_pilot(query_ids: Iterable[str], size: int) -> list[str]:
    """The queries of the pilot: ``size`` random ones, always the same."""
    return heapq.nsmallest(size, query_ids, key=lambda query: draw(0, f"pilot {query}"))


def graded_by_both(first: pa.Table, seconds: pa.Table) -> list[tuple[float, int]]:
    """The first judge's expected grade and the second judge's grade of the pairs that both graded, from JUDGMENTS."""
    expected = dict(zip(pairs_of(first), first["expected"].to_pylist(), strict=True))
    graded = zip(pairs_of(seconds), seconds["grade"].to_pylist(), strict=True)
    return [(expected[pair], grade) for pair, grade in graded if pair in expected]


def fit(both: Sequence[tuple[float, int]]) -> CascadeMap | None:
    """The calibration of the first judge; None without a pair that both graded."""
    if not both:
        return None
    return CascadeMap.fit(np.array([each for each, _ in both]), np.array([grade for _, grade in both]))


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
    requested = {*pairs_of(seconds), *(each.pair for each in missing)}
    rows = [each.row(fingerprint) for each in decided if each.pair not in requested]
    position = {Pair(query, id): i for i, (query, id) in enumerate((q, id) for q, ids in queries for id in ids)}
    both = pa.concat_tables([seconds, pa.Table.from_pylist(rows, seconds.schema)])
    return both.take(np.argsort([position[pair] for pair in pairs_of(both)], kind="stable"))
