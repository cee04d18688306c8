"""judge: grades one shard of an iteration's candidates.

All pairs of a query are in one shard. Judgments are cached as they arrive, so a killed shard resumes.
"""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pyrite import metrics, tables
from pyrite.errors import PyriteError
from pyrite.judges import GRADES, Judge, Judgment, Missing, Pair, open_without_texts
from pyrite.judges.cache import JudgmentCache, open_cache
from pyrite.judges.cascade import CascadeSession
from pyrite.judges.session import Block
from pyrite.judges.timeline import Timeline
from pyrite.stages.blocks import PairBlocks, Selection
from pyrite.stages.cascade import CascadeJudging
from pyrite.stages.context import StepContext
from pyrite.stages.flushing import run_with_flush
from pyrite.stages.inputs import read_answer_key, read_candidates
from pyrite.stages.judging import Judging, Shard
from pyrite.stages.pairs import pairs_key


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/judgments/shard-<k>.parquet and missing-<k>.parquet; return counts."""
    assert ctx.step.shard is not None
    shard, spec = ctx.step.shard, ctx.spec
    # The first judge of a cascade is the last one here.
    judges = [open_without_texts(each) for each in (spec.main_judge, spec.first_judge) if each]
    in_flight = max(judge.in_flight for judge in judges)
    pairs = PairBlocks(ctx.input(pairs_key(ctx.iteration, shard)), Selection.of(spec), in_flight)
    for judge in judges:
        if judge.reads_key:
            judge.load_key(*read_answer_key(ctx))
        judge.fit(lambda: read_candidates(ctx, 1), spec.retrieve.range_max, pairs.query_ids.to_pylist())
    judge, *first = judges
    cache = open_cache(ctx.store, judge, f"{spec.name}/{ctx.iteration}.{shard}")
    session = _ShardSession(judge, cache, pairs, ctx)
    folder = f"iterations/{ctx.iteration}/judgments"
    with tables.writer(ctx.output(f"{folder}/shard-{shard:05d}.parquet"), tables.JUDGMENTS) as output:
        work = Shard(ctx, session, cache, pairs, output)
        judging = CascadeJudging(work, *first) if first else Judging(work)
        asyncio.run(run_with_flush(_judge(judging, ctx), judging.flush))
    more = judging.summary()
    tables.write(ctx.output(f"{folder}/missing-{shard:05d}.parquet"), session.missing_rows(), tables.MISSING)
    session.merge()
    return {
        "pairs": pairs.candidates,
        "not_selected": pairs.candidates - session.total,
        "skipped": session.total - judging.written.rows - len(session.missing),
        **session.counts(judging.judged),
        "grades": judging.written.by_grade(),  # of both judges of a cascade
        "judge": judge.graded_by,
        **judge.stats,
        **more,
        **({"timeline": session.timeline.as_json()} if judge.shareable else {}),
    }


async def _judge(judging: Judging, ctx: StepContext) -> None:
    session = judging.session
    ctx.progress.begin(session.total, "pairs judged")
    await judging.prepare()
    async with session.judge:
        try:
            await judging.judge()
        except PyriteError as error:
            if missing := judging.missing_rows():
                # The error keeps its class, on which the exit code depends.
                error.args = (f"{error} Missing pairs: {await asyncio.to_thread(_log_missing, missing, ctx)}.",)
            raise


def _log_missing(missing: Sequence[Mapping[str, Any]], ctx: StepContext) -> str:
    """Write the missing pairs to the run's logs, since a failed shard has no outputs. Returns the path."""
    key = f"{ctx.prefix}/logs/missing-{ctx.iteration}.{ctx.step.shard}.jsonl"
    ctx.store.write(key, "".join(f"{json.dumps(row)}\n" for row in missing).encode())
    return f"{ctx.store}/{key}"


class _ShardSession(CascadeSession):
    """A session that also updates metrics and the timeline."""

    def __init__(self, judge: Judge, cache: JudgmentCache | None, pairs: PairBlocks, ctx: StepContext):
        spec = ctx.spec.judge
        super().__init__(judge, cache, pairs.selected, spec.max_missing, ctx.progress, patience=spec.patience)
        self.timeline = Timeline(datetime.now(UTC), time.monotonic)
        # All labels at once, so that each metric starts at 0.
        outcomes = ("judged", "cached", "skipped", "not_selected", "missing", "by_first")
        self._pairs = {outcome: metrics.PAIRS.labels(outcome) for outcome in outcomes}
        self._grades = {grade: metrics.GRADES.labels(str(grade)) for grade in GRADES}
        self._pairs["not_selected"].inc(pairs.candidates - pairs.selected)
        metrics.MISSING_LIMIT.set(self.budget.limit)

    def on_judged(self, judgment: Judgment) -> None:
        self.timeline.add(judgment.grade)
        self._pairs["judged"].inc()
        self._grades[judgment.grade].inc()
        super().on_judged(judgment)

    def on_cached(self) -> None:
        self._pairs["cached"].inc()
        super().on_cached()

    def on_skipped(self, block: Block, query_id: str, passage_ids: Sequence[str]) -> None:
        by_first = sum(Pair(query_id, id) in block.decided for id in passage_ids)
        self._pairs["by_first"].inc(by_first)
        self._pairs["skipped"].inc(len(passage_ids) - by_first)
        super().on_skipped(block, query_id, passage_ids)

    def on_decided(self) -> None:
        self._pairs["by_first"].inc()
        super().on_decided()

    def on_missing(self, missing: Missing) -> None:
        self._pairs["missing"].inc()
        metrics.MISSING.labels(missing.kind).inc()
        super().on_missing(missing)
