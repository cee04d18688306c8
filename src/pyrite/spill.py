"""Rows in a temporary file, read again by row number or by group."""

import os
from array import array
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

#: Rows of one record batch. A single row is read with its batch, so batches are small.
_BATCH = 256


class Spill:
    """The rows of a table with ``schema`` in the file ``path``. After ``finish``, they can be read."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._writer = pa.ipc.new_file(path, schema)
        self._pending: list[tuple[Any, ...]] = []
        self._readers: dict[tuple[str, ...], pa.RecordBatchFileReader] = {}
        self.num_rows = 0

    def append(self, *values: Any) -> None:
        """Append a row with a value for each column."""
        self._pending.append(values)
        self.num_rows += 1
        if len(self._pending) == _BATCH:
            self._flush()

    def finish(self) -> None:
        """Call this after the last ``append``."""
        if self._pending:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        columns = zip(*self._pending, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._pending = []

    def select(self, rows: npt.NDArray[np.integer[Any]], *columns: str) -> pa.Table:
        """The ``columns`` of ``rows`` (ascending row numbers)."""
        reader = self._reader(columns)
        batches, starts = np.unique(rows // _BATCH, return_index=True)
        parts = [
            reader.get_batch(batch).take(pa.array(part - batch * _BATCH))
            for batch, part in zip(batches.tolist(), np.split(rows, starts[1:]), strict=False)
        ]
        return pa.Table.from_batches(parts, reader.schema).select(columns).combine_chunks()

    def take(self, rows: npt.NDArray[np.integer[Any]], *columns: str) -> list[pa.Array]:
        """The ``columns`` of ``rows`` (row numbers in any order)."""
        ordered, position = np.unique(rows, return_inverse=True)
        return [column.combine_chunks().take(pa.array(position)) for column in self.select(ordered, *columns).columns]

    def value(self, row: int, column: str) -> Any:
        """One value."""
        return self._reader((column,)).get_batch(row // _BATCH).column(0)[row % _BATCH].as_py()

    def _reader(self, columns: tuple[str, ...]) -> pa.RecordBatchFileReader:
        if columns not in self._readers:
            options = pa.ipc.IpcReadOptions(included_fields=[self._schema.get_field_index(each) for each in columns])
            # Not a memory map: its pages would count as this process's memory.
            self._readers[columns] = pa.ipc.open_file(pa.OSFile(str(self._path)), options=options)
        return self._readers[columns]


class GroupedSpill:
    """Rows of tables with ``schema`` in the file ``path``, in numbered groups. After ``finish``, they can be read."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._writer = pa.ipc.new_file(path, schema, options=pa.ipc.IpcWriteOptions(compression="zstd"))
        #: The numbers of each group's record batches.
        self._batches: defaultdict[int, list[int]] = defaultdict(list)
        self.num_rows = self._count = 0

    def append(self, rows: pa.Table, groups: npt.NDArray[np.integer[Any]]) -> None:
        """Append ``rows`` to their ``groups``. Rows of a negative group are left out."""
        order = np.argsort(groups, kind="stable")[np.count_nonzero(groups < 0) :]
        own = rows.take(pa.array(order)).combine_chunks()
        numbers, starts = np.unique(groups[order], return_index=True)
        ends = [*starts.tolist(), len(order)][1:]
        for number, start, end in zip(numbers.tolist(), starts.tolist(), ends, strict=True):
            (batch,) = own.slice(start, end - start).to_batches()
            self._writer.write_batch(batch)
            self._batches[number].append(self._count)
            self._count += 1
        self.num_rows += own.num_rows

    def finish(self) -> None:
        """Call this after the last ``append``."""
        self._writer.close()

    def read(self, *groups: int) -> pa.Table:
        """The rows of the groups, each in the order in which they were appended."""
        with pa.OSFile(str(self._path)) as file:  # not a memory map, as above
            reader = pa.ipc.open_file(file)
            batches = [reader.get_batch(number) for group in groups for number in self._batches.get(group, ())]
        return pa.Table.from_batches(batches, self._schema)


class TextFile:
    """Rows of strings in the file ``path``, read by row number while rows are appended. Memory holds 8 bytes a string.

    Unlike ``Spill``, it reads single rows, so it is the faster one for rows in any order.
    """

    def __init__(self, path: Path, schema: pa.Schema):
        """``schema``: columns of strings."""
        self._schema = schema
        self._ends = array("q", [0])
        self._file = path.open("w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, rows: pa.Table) -> None:
        """Append ``rows`` with the columns of the schema, and perhaps others."""
        columns = (rows[name].to_pylist() for name in self._schema.names)
        fields = [(field or "").encode() for row in zip(*columns, strict=True) for field in row]
        self._file.write(b"".join(fields))
        ends = self._ends[-1] + np.cumsum(np.fromiter(map(len, fields), np.int64, len(fields)))
        self._ends.frombytes(ends.view(np.uint8).data)

    def take(self, positions: npt.NDArray[np.integer[Any]]) -> pa.Table:
        """The rows at ``positions``, each of which is read once."""
        self._file.flush()
        distinct, order = np.unique(positions, return_inverse=True)
        columns: list[list[bytes]] = [[] for _ in self._schema]
        bounds = np.asarray(self._ends)[len(columns) * distinct[:, None] + np.arange(len(columns) + 1)]
        for start, *ends in bounds.tolist():
            content = os.pread(self._file.fileno(), ends[-1] - start, start)
            begin = 0
            for column, end in zip(columns, ends, strict=True):
                column.append(content[begin : end - start])
                begin = end - start
        read = [pa.array(column, pa.binary()).cast(pa.string()) for column in columns]
        return pa.table(read, self._schema).take(order)
