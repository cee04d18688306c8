"""The cache of judgments: each is paid for once, then used by every run and iteration with the same judge and pair."""

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
    """The stored judgments of one judge, in ``judgments/<fingerprint>/``."""

    def __init__(self, store: Store, judge: Judge, writer: str, attempt: str):
        """``writer`` and ``attempt`` as in AppendLog."""
        self._judge = judge
        self._log = AppendLog(store, f"judgments/{judge.fingerprint}", tables.JUDGMENTS, "query_id", writer, attempt)

    def read(self, query_ids: Collection[str]) -> pa.Table:
        """All cached judgments of the given queries, one per pair, of passages in the judge's current contexts."""
        return _one_per_pair(self._in_current_context(self._log.read(query_ids)))

    def read_from_memory(self, query_ids: Collection[str]) -> pa.Table:
        """Like ``read``, without access to the store: the judgments that this process has read or added before."""
        return _one_per_pair(self._in_current_context(self._log.read_cached(query_ids)))

    def _in_current_context(self, table: pa.Table) -> pa.Table:
        rows = zip(table["passage_id"].to_pylist(), table["context"].to_pylist(), strict=True)
        return table.filter(
            pa.array([self._judge.context(passage) == context for passage, context in rows], pa.bool_())
        )

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Store ``rows`` of ``tables.JUDGMENTS``."""
        self._log.add(rows)

    def merge(self) -> None:
        """Merge this writer's files into one. Call it after the last ``add``."""
        self._log.merge()


def open_cache(store: Store, judge: Judge, writer: str) -> JudgmentCache | None:
    """Open the cache of ``judge``; None if its judgments are not shareable."""
    return JudgmentCache(store, judge, writer, uuid.uuid4().hex[:12]) if judge.shareable else None


def _one_per_pair(table: pa.Table) -> pa.Table:
    """One judgment per pair: the one with the fewest attempts, then the lowest latency."""
    ordered = table.sort_by([(name, "ascending") for name in ("query_id", "passage_id", "attempts", "latency")])
    if ordered.num_rows < 2:
        return ordered
    same = [pc.equal(ordered[name][1:], ordered[name][:-1]) for name in ("query_id", "passage_id")]
    first = pa.concat_arrays([pa.array([True]), pc.invert(pc.and_(*same)).combine_chunks()])
    return ordered.filter(first)
