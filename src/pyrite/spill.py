"""Rows in a temporary file: appended in order, read again by row number."""

from pathlib import Path
from typing import Any

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
