"""An append-only table in the store, for results that cost money.

A writer appends a part every few seconds, so a killed writer loses only the last few seconds. When it finishes, its
parts, and those of its killed attempts, are merged into one. Parts are immutable, so they are cached.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import count
from multiprocessing.pool import ThreadPool
from typing import Any, NamedTuple, TypeVar

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


class _Filter(NamedTuple):
    """Wanted values, as a set and as an Arrow array."""

    values: frozenset[str]
    array: pa.Array


_NO_VALUES = _Filter(frozenset(), pa.array([], pa.string()))


class _CachedPart(NamedTuple):
    """The rows of a part with some ``values``; all of its rows if ``values`` is None."""

    rows: pa.Table
    values: frozenset[str] | None


class AppendLog:
    """An append-only table below ``prefix`` in the store, which is queried by ``column``.

    ``writer`` identifies the shard that appends: "<run>/<shard>". It must not start with another writer's name and a
    dot. ``attempt`` identifies this process among those that do the same work.

    The writer's own parts are cached in memory; of other parts, only the rows that were last read.
    """

    def __init__(self, store: Store, prefix: str, schema: pa.Schema, column: str, writer: str, attempt: str):
        self._store, self._prefix, self._schema, self._column = store, prefix, schema, column
        self._own_prefix, self._attempt, self._numbers = f"{prefix}/{writer}.", attempt, count()
        self._cache: dict[str, _CachedPart] = {}

    def read(self, values: Collection[str]) -> pa.Table:
        """All writers' rows whose ``column`` is among ``values``, unordered. May contain duplicates."""
        wanted = _make_filter(values)
        # A listed part may be absent because its writer has just merged it, or because the store has lost it.
        retrying = Retrying(
            retry=retry_if_exception_type(ObjectNotFound),
            wait=wait_fixed(_READ_WAIT),
            stop=stop_after_attempt(_READ_ATTEMPTS),
            reraise=True,
        )
        try:
            return retrying(
                lambda: self._concat(_map_concurrently(lambda key: self._part(key, wanted), self._keys()), wanted)
            )
        except ObjectNotFound as error:
            raise PyriteError(f"{error}, though it lists it; delete it to request its contents again.") from error

    def read_cached(self, values: Collection[str]) -> pa.Table:
        """As ``read``, but only from memory: rows that were read for ``values`` before, or appended since."""
        return self._concat([part.rows for part in list(self._cache.values())], _make_filter(values))

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append ``rows`` as a part."""
        self._write(f"{self._attempt}.{next(self._numbers):06d}", pa.Table.from_pylist(list(rows), self._schema))

    def merge(self) -> None:
        """Merge all parts of this writer, including those of killed attempts, into one."""
        keys = [key for key in self._keys() if key.startswith(self._own_prefix)]
        try:
            tables = _map_concurrently(lambda key: self._part(key, _NO_VALUES), keys)
        except ObjectNotFound:
            return  # another attempt at the same work is merging them
        if len(keys) > 1:
            self._write(f"{self._attempt}.{next(self._numbers):06d}.merged", pa.concat_tables(tables))
            _map_concurrently(self._store.delete, keys)
            for key in keys:
                self._cache.pop(key, None)

    def _keys(self) -> list[str]:
        """Keys of all parts. Parts that are gone leave the cache."""
        cached = set(self._cache.copy())  # before listing: a part appended meanwhile is not gone
        keys = self._store.keys(self._prefix)
        for key in cached.difference(keys):
            self._cache.pop(key, None)
        return keys

    def _part(self, key: str, wanted: _Filter) -> pa.Table:
        """Rows of a part: all if it is this writer's, else at least the ``wanted`` ones."""
        part = self._cache.get(key)
        if part is None or not (part.values is None or wanted.values <= part.values):
            rows = self._read_part(key)
            own = key.startswith(self._own_prefix)
            part = _CachedPart(rows, None) if own else _CachedPart(self._select(rows, wanted), wanted.values)
            self._cache[key] = part
        return part.rows

    def _read_part(self, key: str) -> pa.Table:
        try:
            return _add_new_columns(pq.read_table(pa.BufferReader(self._store.read(key))), self._schema)
        except (pa.ArrowException, ValueError, ObjectCorrupted) as error:
            reason = error if isinstance(error, ObjectCorrupted) else f"{self._store}/{key} is damaged ({error})"
            raise PyriteError(f"{reason}. Delete it to request its contents again.") from error

    def _concat(self, parts: Iterable[pa.Table], wanted: _Filter) -> pa.Table:
        return pa.concat_tables([self._schema.empty_table(), *(self._select(rows, wanted) for rows in parts)])

    def _select(self, rows: pa.Table, wanted: _Filter) -> pa.Table:
        return rows.filter(pc.is_in(rows[self._column], wanted.array))

    def _write(self, name: str, table: pa.Table) -> None:
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        key = f"{self._own_prefix}{name}.parquet"
        self._store.write(key, buffer.getvalue().to_pybytes())
        self._cache[key] = _CachedPart(table, None)


def _add_new_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """``rows`` in ``schema``. Older parts lack its last columns, which a later version has added: they are null."""
    if rows.schema.names == schema.names[: rows.num_columns]:
        for field in list(schema)[rows.num_columns :]:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows.cast(schema)


def _make_filter(values: Collection[str]) -> _Filter:
    return _Filter(frozenset(values), pa.array(sorted(values), pa.string()))


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
