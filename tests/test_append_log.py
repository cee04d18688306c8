"""AppendLog of a table in a store: each is read once, and no more of it is held than is wanted."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import pytest

from pyrite.append_log import AppendLog
from pyrite.errors import PyriteError
from pyrite.store import Store, open_store

SCHEMA = pa.schema([("key", pa.string()), ("text", pa.string())])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


@pytest.fixture
def reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each key of the store was read."""
    counted: Counter[str] = Counter()
    read = store.read

    def counting(key: str) -> bytes:
        counted[key] += 1
        return read(key)

    monkeypatch.setattr(store, "read", counting)
    return counted


def parts(store: Store, writer: str, attempt: str) -> AppendLog:
    return AppendLog(store, "kept", SCHEMA, "key", writer, attempt)


def grows_by_less_than(limit: int, used: int) -> bool:
    """Whether Arrow holds so few bytes more than ``used``; its threads let go of what they read a little later."""
    deadline = time.monotonic() + 10
    while pa.total_allocated_bytes() - used >= limit and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(pa.total_allocated_bytes() - used < limit)


def rows(*keys: str, text: str = "") -> list[dict[str, Any]]:
    return [{"key": key, "text": text} for key in keys]


def texts(table: pa.Table) -> list[tuple[str, str]]:
    return sorted(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True))


def test_a_damaged_part_is_named_and_with_it_gone_reading_goes_on(store: Store) -> None:
    parts(store, "run/1.0", "one").add(rows("a"))
    (damaged,) = store.keys("kept")
    content = store.read(damaged)
    store.write(damaged, content[: len(content) // 2])
    with pytest.raises(PyriteError, match=rf"{damaged} is damaged .*Delete it, and what it held is asked anew"):
        parts(store, "run/1.1", "two").read(["a"])
    store.delete(damaged)
    assert parts(store, "run/1.1", "two").read(["a"]).num_rows == 0


def test_no_part_is_read_twice_from_start_to_merge_and_ones_own_are_not_read_at_all(
    store: Store, reads: Counter[str]
) -> None:
    """What a shard does: looks for what is known, adds, looks again for its result, merges."""
    for number in range(3):
        parts(store, f"run/1.{number}", "killed").add(rows("a", f"b{number}"))
    other = parts(store, "another-run/1.0", "before")
    other.add(rows("a", text="other"))
    other.add(rows("a", text="more"))
    other.merge()
    shard = parts(store, "run/1.0", "alive")
    before = shard.read({"a", "c"})
    assert texts(before) == [("a", ""), ("a", ""), ("a", ""), ("a", "more"), ("a", "other")]
    shard.add(rows("c"))
    shard.add(rows("d"))
    after = [*texts(before), ("c", "")]
    parts(store, "run/2.0", "meanwhile").add(rows("x"))
    assert texts(shard.held({"a", "c"})) == after
    assert not [key for key in reads if "meanwhile" in key]
    shard.merge()
    assert texts(shard.held({"a", "c"})) == after
    assert texts(shard.read({"a", "c"})) == after
    assert max(reads.values()) == 1
    assert not [key for key in reads if "alive" in key]
    # The merge lost nothing of what the shard itself had not asked for.
    assert texts(parts(store, "x", "y").read({"a", "b0", "d"})) == sorted([*after[:-1], ("b0", ""), ("d", "")])


def test_what_is_asked_for_later_is_found_though_it_was_not_wanted_before(store: Store, reads: Counter[str]) -> None:
    """A part of which the unwanted rows were let go is read again, and never taken for empty."""
    parts(store, "w/0", "one").add(rows("a", "b", "c"))
    reader = parts(store, "w/1", "two")
    assert texts(reader.read({"a", "b"})) == [("a", ""), ("b", "")]
    assert texts(reader.read({"b"})) == [("b", "")], "of more rows held than wanted, the wanted ones"
    assert reads.total() == 1
    assert texts(reader.read({"b", "c"})) == [("b", ""), ("c", "")]
    assert reads.total() == 2


def test_a_part_that_was_merged_away_is_not_counted_twice_nor_held(store: Store, reads: Counter[str]) -> None:
    writer = parts(store, "w/0", "one")
    for number in range(3):
        writer.add(rows("a", text=str(number) * 1_000_000))
    reader = parts(store, "w/1", "two")
    before = texts(reader.read({"a"}))
    assert len(before) == 3
    writer.merge()
    del writer
    used = pa.total_allocated_bytes()
    assert texts(reader.read({"a"})) == before
    assert reads.total() == 4
    assert grows_by_less_than(1_000_000, used), "the three parts went when the merged one came"


def test_of_others_parts_no_more_is_held_than_is_wanted(store: Store, reads: Counter[str]) -> None:
    for number in range(5):
        parts(store, f"w/{number}", "one").add(rows("a", *(f"{n}" for n in range(10_000)), text="x" * 100))
    reader, used = parts(store, "v/0", "two"), pa.total_allocated_bytes()
    assert reader.read({"a"}).num_rows == 5
    assert reads.total() == 5
    assert grows_by_less_than(100_000, used)


def test_what_is_added_after_a_merge_is_merged_too_and_seen_by_who_has_read_before(store: Store) -> None:
    """A merged part under the name of an earlier one would be taken for that one."""
    writer, reader = parts(store, "w/0", "one"), parts(store, "w/1", "two")
    writer.add(rows("a", text="1"))
    writer.add(rows("a", text="2"))
    writer.merge()
    assert len(texts(reader.read({"a"}))) == 2
    writer.add(rows("a", text="3"))
    writer.merge()
    assert [text for _, text in texts(reader.read({"a"}))] == ["1", "2", "3"]
    assert len(store.keys("kept")) == 1


def test_parts_are_read_and_deleted_side_by_side(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        parts(store, f"w/0.{number}", "killed").add(rows(f"{number}"))
    read, delete, together = store.read, store.delete, Barrier(8, timeout=30)

    def when_all_are_there(action: Callable[[str], Any]) -> Callable[[str], Any]:
        return lambda key: together.wait() < 8 and action(key)

    monkeypatch.setattr(store, "read", when_all_are_there(read))
    monkeypatch.setattr(store, "delete", when_all_are_there(delete))
    writer = parts(store, "w/0", "again")
    writer.merge()
    monkeypatch.undo()
    assert len(store.keys("kept")) == 1
    assert parts(store, "w/1", "reader").read({"0", "7"}).num_rows == 2


def test_a_part_that_goes_between_listing_and_reading_is_found_where_it_was_merged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = parts(store, "w/0", "one")
    writer.add(rows("a", text="1"))
    writer.add(rows("a", text="2"))
    keys = store.keys
    merged: list[str] = []

    def then_merged(prefix: str) -> list[str]:
        found = keys(prefix)
        if not merged:
            merged.extend(found)
            writer.merge()
        return found

    monkeypatch.setattr(store, "keys", then_merged)
    assert texts(parts(store, "w/1", "reader").read({"a"})) == [("a", "1"), ("a", "2")]
    assert len(merged) == 2
    assert not set(merged) & set(keys("kept"))


def test_what_is_added_while_others_are_listed_is_held(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: not in the list, it was taken for merged away, and the shard's result lacked it."""
    writer, keys = parts(store, "w/0", "one"), store.keys

    def then_added(prefix: str) -> list[str]:
        found = keys(prefix)
        writer.add(rows("a"))
        return found

    monkeypatch.setattr(store, "keys", then_added)
    assert writer.read({"a"}).num_rows == 0
    assert texts(writer.held({"a"})) == [("a", "")]


def test_a_part_that_is_listed_and_never_there_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrite.append_log._PAUSE", 0.001)
    monkeypatch.setattr(store, "keys", lambda _: ["kept/lost.parquet"])
    with pytest.raises(PyriteError, match=r"has no kept/lost.parquet, though it lists it"):
        parts(store, "w/1", "reader").read({"a"})
