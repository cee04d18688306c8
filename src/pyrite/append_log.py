"""Answers that are paid for, kept in the store as they come: parts of one table, which are only ever added.

A writer adds a part every few seconds, so a killed one loses no more than that. When it is finished, its parts, and
those of killed ones before it, are merged into one. A part never changes, so none is read twice.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import count
from multiprocessing.pool import ThreadPool
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pyrite.errors import PyriteError
from pyrite.store import ObjectCorrupted, ObjectNotFound, Store

T = TypeVar("T")

#: AppendLog that are read, or deleted, side by side: there are thousands, and a store may take long to answer each.
_AT_ONCE = 8

#: Times to look, and seconds between two, before a part that is listed and is not there is called missing.
_LOOKS, _PAUSE = 60, 0.5


class _Wanted(NamedTuple):
    """Values, and the same as Arrow filters by them."""

    values: frozenset[str]
    array: pa.Array


_NOTHING = _Wanted(frozenset(), pa.array([], pa.string()))


class _Held(NamedTuple):
    """The rows of a part that are ``of`` some values; of all where that is None."""

    rows: pa.Table
    of: frozenset[str] | None


class AppendLog:
    """The parts of a table below ``prefix`` in the store, whose rows are asked for by ``column``.

    ``writer`` names who adds them: "<run>/<shard>", where no name is another's beginning up to a dot. ``attempt`` tells
    this process's parts from those of others that do the same work, killed or still alive.

    This writer's parts are held in memory whole, of others' what was asked for last.
    """

    def __init__(self, store: Store, prefix: str, schema: pa.Schema, column: str, writer: str, attempt: str):
        self._store, self._prefix, self._schema, self._column = store, prefix, schema, column
        self._own, self._attempt, self._numbers = f"{prefix}/{writer}.", attempt, count()
        self._held: dict[str, _Held] = {}

    def read(self, values: Collection[str]) -> pa.Table:
        """All rows, of every writer, whose ``column`` is among ``values``, in no order. Some may be there twice."""
        wanted = _wanted(values)
        looks = 0
        while True:
            try:
                return self._together(_each(lambda key: self._part(key, wanted), self._keys()), wanted)
            except ObjectNotFound as absent:
                # Its writer has merged it in the meantime. But a store may also list what it has lost.
                looks += 1
                if looks == _LOOKS:
                    raise PyriteError(f"{absent}, though it lists it; delete it, and it is asked anew.") from absent
                time.sleep(_PAUSE)

    def held(self, values: Collection[str]) -> pa.Table:
        """As ``read``, of what this process has read for ``values`` before and added since: the store is not asked."""
        return self._together([part.rows for part in list(self._held.values())], _wanted(values))

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep ``rows`` as one more part."""
        self._write(f"{self._attempt}.{next(self._numbers):06d}", pa.Table.from_pylist(list(rows), self._schema))

    def merge(self) -> None:
        """Make one part of all that this writer has added, in this process and in killed ones before it."""
        keys = [key for key in self._keys() if key.startswith(self._own)]
        try:
            tables = _each(lambda key: self._part(key, _NOTHING), keys)
        except ObjectNotFound:
            return  # another attempt at the same work is merging them now
        if len(keys) > 1:
            self._write(f"{self._attempt}.{next(self._numbers):06d}.merged", pa.concat_tables(tables))
            _each(self._store.delete, keys)
            for key in keys:
                self._held.pop(key, None)

    def _keys(self) -> list[str]:
        """Keys of all parts. What is held of those that are merged away is let go."""
        before = set(self._held.copy())  # a part that is added while they are listed is not gone
        keys = self._store.keys(self._prefix)
        for gone in before.difference(keys):
            self._held.pop(gone, None)
        return keys

    def _part(self, key: str, wanted: _Wanted) -> pa.Table:
        """The rows of a part, ``wanted`` ones and maybe others; all where it is this writer's."""
        held = self._held.get(key)
        if held is None or not (held.of is None or wanted.values <= held.of):
            rows = self._read(key)
            held = _Held(rows, None) if key.startswith(self._own) else _Held(self._only(rows, wanted), wanted.values)
            self._held[key] = held
        return held.rows

    def _read(self, key: str) -> pa.Table:
        try:
            return pq.read_table(pa.BufferReader(self._store.read(key))).cast(self._schema)
        except (pa.ArrowException, ObjectCorrupted) as error:
            told = error if isinstance(error, ObjectCorrupted) else f"{self._store}/{key} is damaged ({error})"
            raise PyriteError(f"{told}. Delete it, and what it held is asked anew.") from error

    def _together(self, parts: Iterable[pa.Table], wanted: _Wanted) -> pa.Table:
        return pa.concat_tables([self._schema.empty_table(), *(self._only(rows, wanted) for rows in parts)])

    def _only(self, rows: pa.Table, wanted: _Wanted) -> pa.Table:
        return rows.filter(pc.is_in(rows[self._column], wanted.array))

    def _write(self, name: str, table: pa.Table) -> None:
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        key = f"{self._own}{name}.parquet"
        self._store.write(key, buffer.getvalue().to_pybytes())
        self._held[key] = _Held(table, None)


def _wanted(values: Collection[str]) -> _Wanted:
    return _Wanted(frozenset(values), pa.array(sorted(values), pa.string()))


def _each(action: Callable[[str], T], keys: Sequence[str]) -> list[T]:
    # Not an executor's threads, for which a process that is told to stop would wait as long as for the store.
    with ThreadPool(_AT_ONCE) as pool:
        return pool.map(action, keys, chunksize=1)


class WriteBuffer:
    """Rows that are not kept yet."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._flushing = asyncio.Lock()

    async def flush(self, add: Callable[[Sequence[dict[str, Any]]], None]) -> None:
        """Have ``add`` keep them. One flush at a time: when it returns, all is kept. Where ``add`` fails, they stay."""
        async with self._flushing:
            rows = list(self.rows)
            if rows:
                await asyncio.to_thread(add, rows)
                del self.rows[: len(rows)]
