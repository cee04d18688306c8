"""Answers that are paid for, kept in the store as they come: parts of one table, which are only ever added.

A writer adds a part every few seconds, so a killed one loses no more than that. When it is finished, its parts, and
those of killed ones before it, are merged into one.
"""

from collections.abc import Collection, Sequence
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pyrite.store import Absent, Store


class Parts:
    """The parts of a table below ``prefix`` in the store.

    ``writer`` names who adds them: "<run>/<shard>", where no name is another's beginning up to a dot. ``attempt`` tells
    this process's parts from those of others that do the same work, killed or still alive.
    """

    def __init__(self, store: Store, prefix: str, schema: pa.Schema, writer: str, attempt: str):
        self._store, self._prefix, self._schema = store, prefix, schema
        self._own, self._attempt, self._numbers = f"{prefix}/{writer}.", attempt, count()

    def read(self, column: str, values: Collection[str]) -> pa.Table:
        """All rows, of every writer, whose ``column`` is among ``values``, in no order. Some may be there twice."""
        wanted = pa.array(sorted(values), pa.string())
        while True:
            found = [self._schema.empty_table()]
            try:
                for key in self._store.keys(self._prefix):
                    table = self._part(key)
                    found.append(table.filter(pc.is_in(table[column], wanted)))
            except Absent:
                continue  # its writer has merged it in the meantime: look again
            return pa.concat_tables(found)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep ``rows`` as one more part."""
        self._write(f"{self._attempt}.{next(self._numbers):06d}", pa.Table.from_pylist(list(rows), self._schema))

    def merge(self) -> None:
        """Make one part of all that this writer has added, in this process and in killed ones before it."""
        keys = [key for key in self._store.keys(self._prefix) if key.startswith(self._own)]
        try:
            tables = [self._part(key) for key in keys]
        except Absent:
            return  # another attempt at the same work is merging them now
        if len(keys) > 1:
            merged = self._write(f"{self._attempt}.merged", pa.concat_tables(tables))
            for key in keys:
                if key != merged:
                    self._store.delete(key)

    def _part(self, key: str) -> pa.Table:
        return pq.read_table(pa.BufferReader(self._store.read(key))).cast(self._schema)

    def _write(self, name: str, table: pa.Table) -> str:
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        key = f"{self._own}{name}.parquet"
        self._store.write(key, buffer.getvalue().to_pybytes())
        return key
