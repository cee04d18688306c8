"""assess: grades the top passages of all candidates on validation and test with the second judge, evaluate.judge.

The pool of a query has the first 10 passages of the base model, of each iteration and of each blend, as validate ranked
them. The judge sees neither model nor rank. Judgments are cached as they arrive, so a killed step resumes.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.judges import open_without_texts
from pyrite.judges.cache import open_cache
from pyrite.judges.session import Block, JudgingSession, JudgmentCounts, QueryPassages
from pyrite.stages.context import StepContext
from pyrite.stages.flushing import run_with_flush
from pyrite.stages.inputs import passages_by_query, read_candidate_rankings, read_passages_with, read_queries


def run(ctx: StepContext) -> dict[str, Any]:
    """Write assessment/judgments.parquet and assessment/missing.parquet; return counts."""
    configured = ctx.spec.evaluation_judge
    assert configured is not None
    # Sorted by id, so that the order of judging does not depend on models or ranks.
    pool = [(query, sorted(ids)) for query, ids in sorted(passages_by_query(read_candidate_rankings(ctx)).items())]
    total = sum(len(ids) for _, ids in pool)
    judge = open_without_texts(configured)
    judge.load(*_texts(ctx, pool))
    cache = open_cache(ctx.store, judge, f"{ctx.spec.name}/assess")
    session = JudgingSession(judge, cache, total, configured.spec.max_missing, ctx.progress)
    table = session.results(asyncio.run(run_with_flush(_judge(session, pool, ctx), session.flush)))
    tables.write(ctx.output("assessment/judgments.parquet"), table, tables.JUDGMENTS)
    tables.write(ctx.output("assessment/missing.parquet"), session.missing_rows(), tables.MISSING)
    session.merge()
    return {
        "pairs": total,
        "skipped": 0,
        **session.counts(JudgmentCounts(table)),
        "model": configured.spec.server_model,
        "prompt": configured.spec.identity["prompt"],
        "judge": judge.fingerprint,
        **judge.stats,
    }


def _texts(ctx: StepContext, pool: Sequence[QueryPassages]) -> tuple[pa.Table, pa.Table]:
    """The queries and the passages of the pool, as ``Judge.load`` takes them."""
    queries, passages = read_queries(ctx), pa.array({passage for _, ids in pool for passage in ids}, pa.string())
    own = pc.is_in(queries["query_id"], pa.array([query for query, _ in pool], pa.string()))
    return queries.filter(own), read_passages_with(ctx, passages)


async def _judge(session: JudgingSession, pool: Sequence[QueryPassages], ctx: StepContext) -> Block:
    ctx.progress.begin(session.total, "pairs judged")
    await session.load_cached({query for query, _ in pool})
    async with session.judge:
        return await session.judge_all(pool)
