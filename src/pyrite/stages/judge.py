"""judge: one shard of an iteration's candidates is graded.

A query belongs to one shard, whole, so that a query's pairs are graded together. Judgments are kept in numbered parts
as they come; a killed shard reads back its parts and goes on.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from pyrite import tables
from pyrite.errors import PyriteError
from pyrite.judges import Judge, Judgment, Pair, open_judge
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import read_candidates, read_chunks, read_qrels, read_queries

_PART = 4096


def shard_of(query_id: str, shards: int) -> int:
    """The shard that a query's pairs belong to: 0 to ``shards - 1``, even and the same on every machine."""
    return int.from_bytes(hashlib.sha256(query_id.encode()).digest()[:8]) % shards


def run(ctx: StepContext) -> dict[str, Any]:
    """Write iterations/<i>/judgments/shard-<k>.parquet; return counts."""
    assert ctx.step.shard is not None
    shard, shards = ctx.step.shard, ctx.spec.judge.shards
    judge = open_judge(ctx.spec.judge, read_queries(ctx), read_chunks(ctx), read_qrels(ctx))
    candidates = read_candidates(ctx, ctx.iteration).select(["query_id", "chunk_id"]).to_pydict()
    pairs = [
        Pair(query, chunk)
        for query, chunk in zip(candidates["query_id"], candidates["chunk_id"], strict=True)
        if shard_of(query, shards) == shard
    ]
    parts = ctx.scratch / "parts"
    ctx.progress.begin(len(pairs), "pairs judged")
    judged = _read_parts(parts)
    ctx.progress.advance(len(judged))
    _judge_rest(judge, [pair for pair in pairs if pair not in judged], parts, ctx)
    judged = _read_parts(parts)
    rows = [judged[pair] for pair in pairs if pair in judged]
    key = f"iterations/{ctx.iteration}/judgments/shard-{shard:05d}.parquet"
    tables.write(ctx.output(key), rows, tables.JUDGMENTS)
    grades = Counter(row["grade"] for row in rows)
    return {
        "pairs": len(pairs),
        "judged": len(rows),
        "missing": len(pairs) - len(rows),
        "grades": {str(grade): grades[grade] for grade in (1, 2, 3, 4)},
        "judge": judge.fingerprint,
    }


def _judge_rest(judge: Judge, pairs: list[Pair], parts: Path, ctx: StepContext) -> None:
    number = len(list(parts.glob("part-*.parquet"))) if parts.is_dir() else 0
    for start in range(0, len(pairs), _PART):
        batch = pairs[start : start + _PART]
        rows = [_row(judgment, judge.fingerprint) for judgment in judge.judge(batch)]
        path = parts / f"part-{number:06d}.parquet"
        beside = path.with_suffix(".tmp")
        tables.write(beside, rows, tables.JUDGMENTS)
        beside.replace(path)
        number += 1
        ctx.progress.advance(len(batch))


def _row(judgment: Judgment, fingerprint: str) -> dict[str, Any]:
    p1, p2, p3, p4 = judgment.distribution
    return {
        "query_id": judgment.pair.query_id,
        "chunk_id": judgment.pair.chunk_id,
        "grade": judgment.grade,
        "p1": p1,
        "p2": p2,
        "p3": p3,
        "p4": p4,
        "expected": judgment.expected,
        "judge": fingerprint,
    }


def _read_parts(parts: Path) -> dict[Pair, dict[str, Any]]:
    return dict(_rows_of(sorted(parts.glob("part-*.parquet")))) if parts.is_dir() else {}


def _rows_of(paths: Iterable[Path]) -> Iterable[tuple[Pair, dict[str, Any]]]:
    for path in paths:
        try:
            table: pa.Table = tables.read(path, tables.JUDGMENTS)
        except PyriteError:
            path.unlink()  # cut short by a power cut: its pairs are judged again
            continue
        for row in table.to_pylist():
            yield Pair(row["query_id"], row["chunk_id"]), row
