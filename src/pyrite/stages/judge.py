"""judge: grades one shard of an iteration's candidates.

All pairs of a query are in one shard. Judgments are cached as they arrive, so a killed shard resumes.
"""

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import metrics, tables
from pyrite.errors import PyriteError
from pyrite.judges import GRADES, Judge, Judgment, Missing, Pair, open_judge
from pyrite.judges.base import RELEVANT
from pyrite.judges.cache import open_cache
from pyrite.judges.cascade import CascadeSession
from pyrite.judges.session import Finished, QueryPassages, select_candidates
from pyrite.judges.timeline import Timeline
from pyrite.spec import CascadeJudgeSpec
from pyrite.stages.cascade import CascadeJudging
from pyrite.stages.context import StepContext
from pyrite.stages.final_examples import final_examples, sample_known_answers
from pyrite.stages.flushing import run_with_flush
from pyrite.stages.inputs import (
    passages_by_query,
    read_candidates,
    read_judgments,
    read_passages,
    read_qrels,
    read_queries,
)
from pyrite.stages.judging import Judging
from pyrite.training.mining import duplicate_check, shingles_by_id


def shard_of(query_id: str, shards: int) -> int:
    """The shard of a query's pairs: 0 to ``shards - 1``, evenly distributed and the same on every machine."""
    return int.from_bytes(hashlib.sha256(query_id.encode()).digest()[:8]) % shards


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/judgments/shard-<k>.parquet and missing-<k>.parquet; return counts."""
    assert ctx.step.shard is not None
    shard, spec = ctx.step.shard, ctx.spec.judge
    qrels, passages = read_qrels(ctx), read_passages(ctx)
    judge = open_judge(ctx.spec.main_judge, read_queries(ctx), passages, qrels)
    all_candidates = read_candidates(ctx, ctx.iteration)
    candidates = _shard_rows(all_candidates, shard, spec.shards)
    judge.fit(lambda: read_candidates(ctx, 1), ctx.spec.retrieve.range_max, candidates["query_id"].unique().to_pylist())
    known = passages_by_query(_shard_rows(qrels, shard, spec.shards))
    sample = None if ctx.spec.judges_known_answers else sample_known_answers(all_candidates, qrels)
    columns = (candidates[name].to_pylist() for name in ("query_id", "passage_id", "rank"))
    queries = [
        (
            query,
            select_candidates(
                [row[1:] for row in rows], known[query], spec.rank_window, None if sample is None else sample[query]
            ),
        )
        for query, rows in groupby(zip(*columns, strict=True), key=itemgetter(0))
    ]
    finished = None
    if spec.stop:
        is_duplicate = duplicate_check(shingles_by_id(passages))
        finished = final_examples(ctx.spec.mine, candidates, known, _judged_relevant(ctx), is_duplicate)
    session = _ShardSession(judge, queries, candidates.num_rows, ctx, finished)
    judging = Judging(session, queries, known)
    if isinstance(spec, CascadeJudgeSpec):
        judging = CascadeJudging(ctx, spec, session, queries, known, passages, qrels)
    asyncio.run(run_with_flush(_judge(judging, ctx), judging.flush))
    judged = session.results(queries)
    table, by_first = judging.results(judged)
    folder = f"iterations/{ctx.iteration}/judgments"
    tables.write(ctx.output(f"{folder}/shard-{shard:05d}.parquet"), table, tables.JUDGMENTS)
    tables.write(ctx.output(f"{folder}/missing-{shard:05d}.parquet"), session.missing_rows(), tables.MISSING)
    session.merge()
    grades = Counter(table["grade"].to_pylist())
    return {
        "pairs": candidates.num_rows,
        "not_selected": candidates.num_rows - session.total,
        "skipped": session.total - table.num_rows - len(session.missing),
        **session.counts(judged),
        "grades": {str(grade): grades[grade] for grade in GRADES},  # of both judges of a cascade
        "judge": judge.graded_by,
        **judge.stats,
        **by_first,
        **({"timeline": session.timeline.as_json()} if judge.shareable else {}),
    }


def _judged_relevant(ctx: StepContext) -> Mapping[str, set[str]]:
    """The passages that earlier iterations judged relevant, by query."""
    earlier = (read_judgments(ctx, i) for i in range(1, ctx.iteration))
    return passages_by_query(*(each.filter(pc.field("grade") >= RELEVANT) for each in earlier))


async def _judge(judging: Judging, ctx: StepContext) -> None:
    session = judging.session
    ctx.progress.begin(session.total, "pairs judged")
    await session.load_cached({query for query, _ in judging.queries})
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


def _shard_rows(table: pa.Table, shard: int, shards: int) -> pa.Table:
    """The rows of the shard's queries, as Arrow: as Python objects, the table would not fit in a worker's memory."""
    queries = table["query_id"].unique().to_pylist()
    own = pa.array((query for query in queries if shard_of(query, shards) == shard), pa.string())
    return table.filter(pc.is_in(table["query_id"], own))


class _ShardSession(CascadeSession):
    """A session that also updates metrics and the timeline."""

    def __init__(
        self,
        judge: Judge,
        queries: Sequence[QueryPassages],
        candidates: int,
        ctx: StepContext,
        finished: Finished | None,
    ):
        cache = open_cache(ctx.store, judge, f"{ctx.spec.name}/{ctx.iteration}.{ctx.step.shard}")
        total, spec = sum(len(passages) for _, passages in queries), ctx.spec.judge
        options: dict[str, Any] = {"patience": spec.patience, "finished": finished}
        super().__init__(judge, cache, total, spec.max_missing, ctx.progress, **options)
        self.timeline = Timeline(datetime.now(UTC), time.monotonic)
        # All labels at once, so that each metric starts at 0.
        outcomes = ("judged", "cached", "skipped", "not_selected", "missing", "by_first")
        self._pairs = {outcome: metrics.PAIRS.labels(outcome) for outcome in outcomes}
        self._grades = {grade: metrics.GRADES.labels(str(grade)) for grade in GRADES}
        self._pairs["not_selected"].inc(candidates - total)
        metrics.MISSING_LIMIT.set(self.budget.limit)

    def on_judged(self, judgment: Judgment) -> None:
        self.timeline.add(judgment.grade)
        self._pairs["judged"].inc()
        self._grades[judgment.grade].inc()
        super().on_judged(judgment)

    def on_cached(self) -> None:
        self._pairs["cached"].inc()
        super().on_cached()

    def on_skipped(self, query_id: str, passage_ids: Sequence[str]) -> None:
        by_first = sum(Pair(query_id, id) in self.decided for id in passage_ids)
        self._pairs["by_first"].inc(by_first)
        self._pairs["skipped"].inc(len(passage_ids) - by_first)
        super().on_skipped(query_id, passage_ids)

    def on_decided(self) -> None:
        self._pairs["by_first"].inc()
        super().on_decided()

    def on_missing(self, missing: Missing) -> None:
        self._pairs["missing"].inc()
        metrics.MISSING.labels(missing.kind).inc()
        super().on_missing(missing)
