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


def test_groups_are_read_in_the_order_of_appending(tmp_path: Path) -> None:
    schema = pa.schema([("number", pa.int64())])
    grouped = spill.GroupedSpill(tmp_path / "spill", schema)
    for start, groups in ((0, [2, -1, 0, 2]), (4, [-1, -1]), (6, [0, 0, 1])):
        grouped.append(pa.table({"number": range(start, start + len(groups))}, schema), np.array(groups))
    grouped.finish()
    assert grouped.num_rows == 6
    found = {group: grouped.read(group)["number"].to_pylist() for group in range(4)}
    assert found == {0: [2, 6, 7], 1: [8], 2: [0, 3], 3: []}
    assert grouped.read(1, 2, 3)["number"].to_pylist() == [8, 0, 3]
