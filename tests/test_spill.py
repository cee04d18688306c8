"""Rows in a temporary file."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite import spill

_SCHEMA = pa.schema([("number", pa.int32()), ("text", pa.string())])


@given(st.lists(st.text(), min_size=1), st.integers(1, 5), st.data())
def test_rows_are_read_by_their_numbers(texts: list[str], batch: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1)))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "_BATCH", batch)
        spilled = spill.Spill(Path(folder) / "rows", _SCHEMA)
        for number, text in enumerate(texts):
            spilled.append(number, text)
        spilled.finish()
        assert spilled.num_rows == len(texts)
        assert [spilled.value(row, "text") for row in rows] == [texts[row] for row in rows]
        expected = [{"text": texts[row], "number": row} for row in sorted(set(rows))]
        assert spilled.select(np.unique(np.array(rows, int)), "text", "number").to_pylist() == expected
        numbers, found = spilled.take(np.array(rows, int), "number", "text")
        assert (numbers.to_pylist(), found.to_pylist()) == (rows, [texts[row] for row in rows])
