"""An append-only table in the store, for results that cost money.

A writer appends a part every few seconds, so a killed writer loses only the last few seconds. When it finishes, its
parts, and those of its killed attempts, are merged into larger ones. Parts are immutable and small enough to be read
into memory.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from itertools import count
from multiprocessing.pool import ThreadPool
from threading import Lock
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from pyrite.errors import PyriteError
from pyrite.store import ObjectCorrupted, ObjectNotFound, Store

T = TypeVar("T")

#: Parts that are read or deleted concurrently: there are thousands, and a store may respond slowly.
_CONCURRENCY = 8

#: Attempts to read a part that is listed but absent, and seconds between them.
_READ_ATTEMPTS, _READ_WAIT = 60, 0.5

#: Maximum rows of a merged part.
_MERGED_ROWS = 1 << 15


class AppendLog:
    """An append-only table below ``prefix`` in the store, which is queried by ``column``.

    ``writer`` identifies the shard that appends: "<run>/<shard>". It must not start with another writer's name and a
    dot. ``attempt`` identifies this process among those that do the same work.
    """

    def __init__(self, store: Store, prefix: str, schema: pa.Schema, column: str, writer: str, attempt: str):
        self._store, self._prefix, self._schema, self._column = store, prefix, schema, column
        self._own_prefix, self._attempt, self._numbers = f"{prefix}/{writer}.", attempt, count()

    def read(self, values: Collection[str]) -> pa.Table:
        """All writers' rows whose ``column`` is among ``values``, unordered. May contain duplicates."""
        wanted = pa.array(sorted(values), pa.string())
        found = [self._schema.empty_table()]
        self.scan(lambda rows: found.append(rows.filter(pc.is_in(rows[self._column], wanted))))
        return pa.concat_tables(found)

    def scan(self, consume: Callable[[pa.Table], None]) -> None:
        """Call ``consume`` with the rows of each part of all writers, one call at a time. May repeat rows."""
        consumed: set[str] = set()
        lock = Lock()

        def read(key: str) -> None:
            rows = self._read_part(key)
            with lock:
                consume(rows)
                consumed.add(key)

        # A listed part may be absent because its writer has just merged it, or because the store has lost it.
        retrying = Retrying(
            retry=retry_if_exception_type(ObjectNotFound),
            wait=wait_fixed(_READ_WAIT),
            stop=stop_after_attempt(_READ_ATTEMPTS),
            reraise=True,
        )
        try:
            retrying(
                lambda: _map_concurrently(read, [key for key in self._store.keys(self._prefix) if key not in consumed])
            )
        except ObjectNotFound as error:
            raise PyriteError(f"{error}, though it lists it; delete it to request its contents again.") from error

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append ``rows`` as a part."""
        self._write("", pa.Table.from_pylist(list(rows), self._schema))

    def merge(self) -> None:
        """Merge all parts of this writer, including those of killed attempts, into parts of ``_MERGED_ROWS`` rows."""
        keys = [key for key in self._store.keys(self._prefix) if key.startswith(self._own_prefix)]
        if len(keys) < 2 or all(key.endswith(".merged.parquet") for key in keys):
            return
        merged, pending = [], self._schema.empty_table()
        try:
            for start in range(0, len(keys), _CONCURRENCY):
                parts = _map_concurrently(self._read_part, keys[start : start + _CONCURRENCY])
                pending = pa.concat_tables([pending, *parts])
                while pending.num_rows > _MERGED_ROWS:
                    merged.append(self._write(".merged", pending.slice(0, _MERGED_ROWS)))
                    pending = pending.slice(_MERGED_ROWS)
            self._write(".merged", pending)
        except ObjectNotFound:
            keys = merged  # another attempt at the same work is merging the parts
        _map_concurrently(self._store.delete, keys)

    def _read_part(self, key: str) -> pa.Table:
        try:
            return _add_new_columns(pq.read_table(pa.BufferReader(self._store.read(key))), self._schema)
        except (pa.ArrowException, ValueError, ObjectCorrupted) as error:
            reason = error if isinstance(error, ObjectCorrupted) else f"{self._store}/{key} is damaged ({error})"
            raise PyriteError(f"{reason}. Delete it to request its contents again.") from error

    def _write(self, suffix: str, table: pa.Table) -> str:
        """Write ``table`` as a part and return its key."""
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        key = f"{self._own_prefix}{self._attempt}.{next(self._numbers):06d}{suffix}.parquet"
        self._store.write(key, buffer.getvalue().to_pybytes())
        return key


def _add_new_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """``rows`` in ``schema``. Older parts lack its last columns, which a later version has added: they are null."""
    if rows.schema.names == schema.names[: rows.num_columns]:
        for field in list(schema)[rows.num_columns :]:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows.cast(schema)


def _map_concurrently(action: Callable[[str], T], keys: Sequence[str]) -> list[T]:
    # Not an executor: at exit, a process waits for an executor's threads, and so for the store.
    with ThreadPool(_CONCURRENCY) as pool:
        return pool.map(action, keys, chunksize=1)


class WriteBuffer:
    """Rows that are not in the store yet."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._flushing = asyncio.Lock()

    async def flush(self, add: Callable[[Sequence[dict[str, Any]]], None]) -> None:
        """Store all rows with ``add``. Flushes do not overlap. If ``add`` fails, the rows stay in the buffer."""
        async with self._flushing:
            rows = list(self.rows)
            if rows:
                await asyncio.to_thread(add, rows)
                del self.rows[: len(rows)]
