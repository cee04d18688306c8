"""Cached judgments: each is paid for once and used by every run and iteration with the same judge and pair."""

import uuid
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.append_log import AppendLog
from pyrite.judges.base import Judge
from pyrite.store import Store


class JudgmentCache:
    """Stored judgments of one judge, in ``judgments/<fingerprint>/``; ``writer`` and ``attempt`` as in AppendLog."""

    def __init__(self, store: Store, fingerprint: str, writer: str, attempt: str):
        self._parts = AppendLog(store, f"judgments/{fingerprint}", tables.JUDGMENTS, "query_id", writer, attempt)

    def read(self, query_ids: Collection[str]) -> pa.Table:
        """All cached judgments of the given queries, one per pair."""
        return _one_per_pair(self._parts.read(query_ids))

    def held(self, query_ids: Collection[str]) -> pa.Table:
        """Like ``read``, but only what this process has read for these queries and added. Does not access the store."""
        return _one_per_pair(self._parts.read_cached(query_ids))

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Store ``rows`` of ``tables.JUDGMENTS``."""
        self._parts.add(rows)

    def merge(self) -> None:
        """Merge this writer's files into one, after its last row."""
        self._parts.merge()


def open_cache(store: Store, judge: Judge, writer: str, attempt: str | None = None) -> JudgmentCache | None:
    """The cache of ``judge``; None if its judgments are not shareable. ``attempt``: by default a random one."""
    attempt = attempt or uuid.uuid4().hex[:12]
    return JudgmentCache(store, judge.fingerprint, writer, attempt) if judge.shareable else None


def _one_per_pair(table: pa.Table) -> pa.Table:
    """The judgment of each pair with the fewest attempts, then the lowest latency."""
    ordered = table.sort_by([(name, "ascending") for name in ("query_id", "passage_id", "attempts", "latency")])
    if ordered.num_rows < 2:
        return ordered
    same = [pc.equal(ordered[name][1:], ordered[name][:-1]) for name in ("query_id", "passage_id")]
    first = pa.concat_arrays([pa.array([True]), pc.invert(pc.and_(*same)).combine_chunks()])
    return ordered.filter(first)
