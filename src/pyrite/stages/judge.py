"""judge: one shard of an iteration's candidates is graded.

A query belongs to one shard, whole. What the judge answers is kept as it comes, so a killed shard goes on from there.
"""

import asyncio
import hashlib
import json
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import metrics, tables
from pyrite.append_log import WriteBuffer
from pyrite.errors import PyriteError, first_error
from pyrite.judges import GRADES, Judge, Judgment, Missing, Pair, open_judge
from pyrite.judges.budget import MissingBudget
from pyrite.judges.cache import JudgmentCache
from pyrite.judges.selection import select_candidates
from pyrite.judges.session import Walk, judge_all
from pyrite.judges.timeline import Timeline
from pyrite.stages.context import StepContext
from pyrite.stages.flushing import run_with_flush
from pyrite.stages.inputs import read_candidates, read_passages, read_qrels, read_queries


def shard_of(query_id: str, shards: int) -> int:
    """The shard that a query's pairs belong to: 0 to ``shards - 1``, even and the same on every machine."""
    return int.from_bytes(hashlib.sha256(query_id.encode()).digest()[:8]) % shards


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/judgments/shard-<k>.parquet and missing-<k>.parquet; return counts."""
    assert ctx.step.shard is not None
    shard, spec = ctx.step.shard, ctx.spec.judge
    queries, qrels = read_queries(ctx), read_qrels(ctx)
    judge = open_judge(ctx.spec, queries, read_passages(ctx), qrels)
    candidates = _of_shard(read_candidates(ctx, ctx.iteration), shard, spec.shards)
    known: dict[str, set[str]] = defaultdict(set)
    for query, passage in _rows(_of_shard(qrels, shard, spec.shards), "query_id", "passage_id"):
        known[query].add(passage)
    walks = [
        (query, select_candidates(query, [row[1:] for row in rows], known[query], spec, ctx.spec.seed))
        for query, rows in groupby(_rows(candidates, "query_id", "passage_id", "rank"), key=itemgetter(0))
    ]
    kept = None
    if judge.shared:
        writer = f"{ctx.spec.name}/{ctx.iteration}.{shard}"
        kept = JudgmentCache(ctx.store, judge.fingerprint, writer, uuid.uuid4().hex[:12])
    not_selected = candidates.num_rows - sum(len(passages) for _, passages in walks)
    judging = _Judging(walks, known, not_selected, judge, kept, ctx)
    asyncio.run(run_with_flush(judging.walk(), judging.flush))
    table = judging.result()
    place = f"iterations/{ctx.iteration}/judgments"
    tables.write(ctx.output(f"{place}/shard-{shard:05d}.parquet"), table, tables.JUDGMENTS)
    tables.write(ctx.output(f"{place}/missing-{shard:05d}.parquet"), judging.absent, tables.MISSING)
    if kept:
        kept.merge()
    grades = Counter(table["grade"].to_pylist())
    return {
        "pairs": candidates.num_rows,
        "not_selected": not_selected,
        "skipped": judging.passed,
        "cached": judging.reused,
        "judged": table.num_rows,
        "missing": len(judging.absent),
        "missing_reasons": dict(Counter(row["reason"] for row in judging.absent).most_common()),
        "grades": {str(grade): grades[grade] for grade in GRADES},
        "prompt_tokens": sum(table["prompt_tokens"].to_pylist()),
        "cached_tokens": sum(table["cached_tokens"].to_pylist()),
        "judge": judge.fingerprint,
        **judge.stats,
        **({"timeline": judging.timeline.as_json()} if judge.shared else {}),
    }


def _of_shard(table: pa.Table, shard: int, shards: int) -> pa.Table:
    """The rows of the shard's queries. All shards' rows as Python objects would not fit in a worker's memory."""
    queries = table["query_id"].unique().to_pylist()
    own = pa.array((query for query in queries if shard_of(query, shards) == shard), pa.string())
    return table.filter(pc.is_in(table["query_id"], own))


def _rows(table: pa.Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[column].to_pylist() for column in columns), strict=True)


class _Judging:
    """The work on one shard: takes what the walks bring, keeps it as it comes, and watches how much is missing."""

    def __init__(
        self,
        walks: Sequence[Walk],
        known: Mapping[str, Collection[str]],
        not_selected: int,
        judge: Judge,
        kept: JudgmentCache | None,
        ctx: StepContext,
    ):
        self._walks, self._known, self._judge, self._kept, self._ctx = walks, known, judge, kept, ctx
        self._fresh = WriteBuffer()
        self._left: dict[str, int] = {}
        self.total = sum(len(passages) for _, passages in walks)
        self._budget = MissingBudget(ctx.spec.judge.max_missing, self.total)
        metrics.MISSING_LIMIT.set(self._budget.most)
        # All of them, so that they are 0 and not absent where none is counted.
        outcomes = ("judged", "cached", "skipped", "not_selected", "missing")
        self._pairs = {outcome: metrics.PAIRS.labels(outcome) for outcome in outcomes}
        self._grades = {grade: metrics.GRADES.labels(str(grade)) for grade in GRADES}
        self._pairs["not_selected"].inc(not_selected)
        self.absent: list[dict[str, Any]] = []
        self.timeline = Timeline(datetime.now(UTC), time.monotonic)
        self.reused = 0
        self.passed = 0

    async def walk(self) -> None:
        """Walk all.

        Raises:
            PyriteError: too many pairs could not be graded, or the judge cannot go on.
        """
        self._ctx.progress.begin(self.total, "pairs judged")
        grades: dict[Pair, int] = {}
        if self._kept:
            table = await asyncio.to_thread(self._kept.read, {query for query, _ in self._walks})
            pairs = map(Pair, table["query_id"].to_pylist(), table["passage_id"].to_pylist())
            grades = dict(zip(pairs, table["grade"].to_pylist(), strict=True))
        async with self._judge:
            try:
                await judge_all(self._walks, self._judge, grades, self._ctx.spec.judge.patience, self, self._known)
            except BaseExceptionGroup as group:
                error = first_error(group)
                if isinstance(error, PyriteError) and self.absent:
                    # Its class stays: the exit code is by it.
                    error.args = (f"{error} Which pairs, and why: {await asyncio.to_thread(self._list_absent)}.",)
                raise error from group

    def _list_absent(self) -> str:
        """Put what is missing where a person finds it though the shard has no outputs; returns where."""
        key = f"{self._ctx.prefix}/logs/missing-{self._ctx.iteration}.{self._ctx.step.shard}.jsonl"
        self._ctx.store.write(key, "".join(f"{json.dumps(row)}\n" for row in self.absent).encode())
        return f"{self._ctx.store}/{key}"

    async def flush(self) -> None:
        """Keep what was judged since the last time."""
        if self._kept:
            await self._fresh.flush(self._kept.add)

    def result(self) -> pa.Table:
        """The judgments of all walked pairs, in the order of the walks; of others, known from elsewhere, none.

        Raises:
            PyriteError: a pair is neither judged nor missing.
        """
        walked = [(q, passages[: len(passages) - self._left.get(q, 0)]) for q, passages in self._walks]
        if self._kept:
            table = self._kept.held({query for query, _ in self._walks})
        else:
            table = pa.Table.from_pylist(self._fresh.rows, tables.JUDGMENTS)
        order = pa.table(
            {
                "query_id": pa.array((q for q, passages in walked for _ in passages), pa.string()),
                "passage_id": pa.array((c for _, passages in walked for c in passages), pa.string()),
                "position": pa.array(range(self.total - self.passed), pa.int64()),
            }
        )
        found = order.join(table, ["query_id", "passage_id"], join_type="inner").sort_by("position")
        if found.num_rows + len(self.absent) != order.num_rows:
            raise PyriteError(
                f"{order.num_rows} pairs were asked for, but {found.num_rows} judgments are kept and "
                f"{len(self.absent)} pairs are missing. The same command asks for the rest."
            )
        return found.select(tables.JUDGMENTS.names).cast(tables.JUDGMENTS)

    def judged(self, judgment: Judgment) -> None:
        self._fresh.rows.append(judgment.row(self._judge.fingerprint))
        self.timeline.add(judgment.grade)
        self._pairs["judged"].inc()
        self._grades[judgment.grade].inc()
        self._ctx.progress.advance()

    def kept(self, pair: Pair) -> None:
        del pair
        self.reused += 1
        self._pairs["cached"].inc()
        self._ctx.progress.advance()

    def skipped(self, query_id: str, passage_ids: Sequence[str]) -> None:
        self.passed += len(passage_ids)
        self._left[query_id] = len(passage_ids)
        self._pairs["skipped"].inc(len(passage_ids))
        self._ctx.progress.advance(len(passage_ids))

    def missing(self, missing: Missing) -> None:
        query_id, passage_id = missing.pair
        self.absent.append(
            {"query_id": query_id, "passage_id": passage_id, "reason": missing.reason, "attempts": missing.attempts}
        )
        self._pairs["missing"].inc()
        metrics.MISSING.labels(missing.kind).inc()
        self._ctx.progress.advance()
        self._budget.spend(missing)
