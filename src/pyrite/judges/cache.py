"""The cache of judgments: each is paid for once, then used by every run and iteration with the same judge and pair."""

import uuid
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.append_log import AppendLog
from pyrite.judges.base import Judge, pairs_of
from pyrite.store import Store


class JudgmentCache:
    """The stored judgments of one judge, in ``judgments/<fingerprint>/``."""

    def __init__(self, store: Store, judge: Judge, writer: str, attempt: str):
        """``writer`` and ``attempt`` as in AppendLog."""
        self._judge = judge
        self._log = AppendLog(store, f"judgments/{judge.fingerprint}", tables.JUDGMENTS, "query_id", writer, attempt)

    def read(self, query_ids: Collection[str]) -> pa.Table:
        """All cached judgments of the given queries that are ``usable``."""
        return self.usable(self._log.read(query_ids))

    def scan(self, consume: Callable[[pa.Table], None]) -> None:
        """Call ``consume`` with all cached judgments in parts, one call at a time. May repeat judgments."""
        self._log.scan(consume)

    def usable(self, judgments: pa.Table) -> pa.Table:
        """One of the ``judgments`` per pair, of passages in the contexts that the judge has."""
        contexts = judgments["context"].to_pylist()
        current = [
            self._judge.context(pair) == context for pair, context in zip(pairs_of(judgments), contexts, strict=True)
        ]
        return _one_per_pair(judgments.filter(pa.array(current, pa.bool_())))

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Store ``rows`` of ``tables.JUDGMENTS``."""
        self._log.add(rows)

    def merge(self) -> None:
        """Merge this writer's files. Call it after the last ``add``."""
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
