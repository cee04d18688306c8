"""Judgments that are kept: paid for once, used by every run and iteration that asks the same judge the same pair."""

from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.append_log import AppendLog
from pyrite.store import Store


class JudgmentCache:
    """Stored judgments of one judge, in ``judgments/<fingerprint>/``; ``writer`` and ``attempt`` as in AppendLog."""

    def __init__(self, store: Store, fingerprint: str, writer: str, attempt: str):
        self._parts = AppendLog(store, f"judgments/{fingerprint}", tables.JUDGMENTS, "query_id", writer, attempt)

    def read(self, query_ids: Collection[str]) -> pa.Table:
        """All kept judgments of the given queries; a pair that was asked twice comes once."""
        return _once(self._parts.read(query_ids))

    def held(self, query_ids: Collection[str]) -> pa.Table:
        """As ``read``, of what was read for these queries before and added since: the store is not asked again."""
        return _once(self._parts.read_cached(query_ids))

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep ``rows`` of ``tables.JUDGMENTS``."""
        self._parts.add(rows)

    def merge(self) -> None:
        """Tidy up after this writer's last row."""
        self._parts.merge()


def _once(table: pa.Table) -> pa.Table:
    """One row a pair: whichever was asked the fewest times, and then answered the fastest."""
    ordered = table.sort_by([(name, "ascending") for name in ("query_id", "passage_id", "attempts", "latency")])
    if ordered.num_rows < 2:
        return ordered
    same = [pc.equal(ordered[name][1:], ordered[name][:-1]) for name in ("query_id", "passage_id")]
    first = pa.concat_arrays([pa.array([True]), pc.invert(pc.and_(*same)).combine_chunks()])
    return ordered.filter(first)
