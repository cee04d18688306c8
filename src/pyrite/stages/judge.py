"""judge: grades one shard of an iteration's candidates.

All pairs of a query are in one shard. Judgments are cached as they arrive, so a killed shard resumes.
"""

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import metrics, tables
from pyrite.errors import PyriteError
from pyrite.judges import GRADES, Judge, Judgment, Missing, open_judge
from pyrite.judges.cache import open_cache
from pyrite.judges.session import MAX_REASONS, JudgingSession, QueryPassages, select_candidates
from pyrite.judges.timeline import Timeline
from pyrite.stages.context import StepContext
from pyrite.stages.flushing import run_with_flush
from pyrite.stages.inputs import passages_by_query, read_candidates, read_passages, read_qrels, read_queries


def shard_of(query_id: str, shards: int) -> int:
    """The shard of a query's pairs: 0 to ``shards - 1``, evenly distributed and the same on every machine."""
    return int.from_bytes(hashlib.sha256(query_id.encode()).digest()[:8]) % shards


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/judgments/shard-<k>.parquet and missing-<k>.parquet; return counts."""
    assert ctx.step.shard is not None
    shard, spec = ctx.step.shard, ctx.spec.judge
    qrels = read_qrels(ctx)
    judge = open_judge(ctx.spec, read_queries(ctx), read_passages(ctx), qrels)
    judge.fit(lambda: read_candidates(ctx, 1))
    candidates = _shard_rows(read_candidates(ctx, ctx.iteration), shard, spec.shards)
    known = passages_by_query(_shard_rows(qrels, shard, spec.shards))
    columns = (candidates[name].to_pylist() for name in ("query_id", "passage_id", "rank"))
    queries = [
        (query, select_candidates([row[1:] for row in rows], known[query], spec.rank_window))
        for query, rows in groupby(zip(*columns, strict=True), key=itemgetter(0))
    ]
    session = _ShardSession(judge, queries, candidates.num_rows, ctx)
    asyncio.run(run_with_flush(_judge(session, queries, known, ctx), session.flush))
    table = session.results(queries)
    missing = _missing_rows(session)
    folder = f"iterations/{ctx.iteration}/judgments"
    tables.write(ctx.output(f"{folder}/shard-{shard:05d}.parquet"), table, tables.JUDGMENTS)
    tables.write(ctx.output(f"{folder}/missing-{shard:05d}.parquet"), missing, tables.MISSING)
    session.merge()
    grades = Counter(table["grade"].to_pylist())
    return {
        "pairs": candidates.num_rows,
        "not_selected": candidates.num_rows - session.total,
        "skipped": sum(session.skipped.values()),
        "cached": session.cached,
        "judged": table.num_rows,
        "missing": len(missing),
        "missing_reasons": dict(Counter(row["reason"] for row in missing).most_common(MAX_REASONS)),
        "grades": {str(grade): grades[grade] for grade in GRADES},
        "prompt_tokens": sum(table["prompt_tokens"].to_pylist()),
        "cached_tokens": sum(table["cached_tokens"].to_pylist()),
        "judge": judge.fingerprint,
        **judge.stats,
        **({"timeline": session.timeline.as_json()} if judge.shareable else {}),
    }


async def _judge(
    session: JudgingSession,
    queries: Sequence[QueryPassages],
    known: Mapping[str, Collection[str]],
    ctx: StepContext,
) -> None:
    ctx.progress.begin(session.total, "pairs judged")
    await session.load_cached({query for query, _ in queries})
    async with session.judge:
        try:
            await session.judge_all(queries, known)
        except PyriteError as error:
            if session.missing:
                # The error keeps its class, on which the exit code depends.
                error.args = (f"{error} Missing pairs: {await asyncio.to_thread(_log_missing, session, ctx)}.",)
            raise


def _log_missing(session: JudgingSession, ctx: StepContext) -> str:
    """Write the missing pairs to the run's logs, since a failed shard has no outputs. Returns the path."""
    key = f"{ctx.prefix}/logs/missing-{ctx.iteration}.{ctx.step.shard}.jsonl"
    ctx.store.write(key, "".join(f"{json.dumps(row)}\n" for row in _missing_rows(session)).encode())
    return f"{ctx.store}/{key}"


def _missing_rows(session: JudgingSession) -> list[dict[str, Any]]:
    return [{**each.pair._asdict(), "reason": each.reason, "attempts": each.attempts} for each in session.missing]


def _shard_rows(table: pa.Table, shard: int, shards: int) -> pa.Table:
    """The rows of the shard's queries, as Arrow: as Python objects, the table would not fit in a worker's memory."""
    queries = table["query_id"].unique().to_pylist()
    own = pa.array((query for query in queries if shard_of(query, shards) == shard), pa.string())
    return table.filter(pc.is_in(table["query_id"], own))


class _ShardSession(JudgingSession):
    """A session that also updates metrics and the timeline."""

    def __init__(self, judge: Judge, queries: Sequence[QueryPassages], candidates: int, ctx: StepContext):
        cache = open_cache(ctx.store, judge, f"{ctx.spec.name}/{ctx.iteration}.{ctx.step.shard}")
        total, spec = sum(len(passages) for _, passages in queries), ctx.spec.judge
        super().__init__(judge, cache, total, spec.max_missing, ctx.progress, patience=spec.patience)
        self.timeline = Timeline(datetime.now(UTC), time.monotonic)
        # All labels at once, so that each metric starts at 0.
        outcomes = ("judged", "cached", "skipped", "not_selected", "missing")
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

    def on_skipped(self, query_id: str, passages: int) -> None:
        self._pairs["skipped"].inc(passages)
        super().on_skipped(query_id, passages)

    def on_missing(self, missing: Missing) -> None:
        self._pairs["missing"].inc()
        metrics.MISSING.labels(missing.kind).inc()
        super().on_missing(missing)
