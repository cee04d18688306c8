"""AppendLog: each part is read once, and no more rows are cached than needed."""

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
    """The number of reads by key."""
    counts: Counter[str] = Counter()
    read = store.read

    def counting_read(key: str) -> bytes:
        counts[key] += 1
        return read(key)

    monkeypatch.setattr(store, "read", counting_read)
    return counts


def open_log(store: Store, writer: str, attempt: str) -> AppendLog:
    return AppendLog(store, "log", SCHEMA, "key", writer, attempt)


def grew_by_less_than(limit: int, used: int) -> bool:
    """Whether Arrow's memory exceeds ``used`` by less than ``limit``; its threads free buffers with a delay."""
    deadline = time.monotonic() + 10
    while pa.total_allocated_bytes() - used >= limit and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(pa.total_allocated_bytes() - used < limit)


def rows(*keys: str, text: str = "") -> list[dict[str, Any]]:
    return [{"key": key, "text": text} for key in keys]


def texts(table: pa.Table) -> list[tuple[str, str]]:
    return sorted(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True))


def test_parts_without_the_last_columns_are_read(store: Store) -> None:
    open_log(store, "run/1.0", "one").add(rows("a", text="old"))
    newer = pa.schema([*SCHEMA, ("score", pa.float32())])
    log = AppendLog(store, "log", newer, "key", "run/1.0", "two")
    log.add([{"key": "b", "text": "new", "score": 0.5}])
    log.merge()
    table = AppendLog(store, "log", newer, "key", "run/1.1", "three").read({"a", "b"})
    assert sorted(zip(table["text"].to_pylist(), table["score"].to_pylist(), strict=True)) == [
        ("new", 0.5),
        ("old", None),
    ]
    with pytest.raises(PyriteError, match="is damaged"):
        AppendLog(store, "log", pa.schema([("score", pa.float32()), *SCHEMA]), "key", "run/1.2", "four").read({"a"})


def test_a_damaged_part_is_named_and_can_be_deleted(store: Store) -> None:
    open_log(store, "run/1.0", "one").add(rows("a"))
    (damaged,) = store.keys("log")
    content = store.read(damaged)
    store.write(damaged, content[: len(content) // 2])
    with pytest.raises(PyriteError, match=rf"{damaged} is damaged .*Delete it to request its contents again"):
        open_log(store, "run/1.1", "two").read(["a"])
    store.delete(damaged)
    assert open_log(store, "run/1.1", "two").read(["a"]).num_rows == 0


def test_foreign_parts_are_read_once_and_own_parts_never(store: Store, reads: Counter[str]) -> None:
    """A shard's work: read earlier results, append, read its result from the cache, merge."""
    for number in range(3):
        open_log(store, f"run/1.{number}", "killed").add(rows("a", f"b{number}"))
    other = open_log(store, "another-run/1.0", "before")
    other.add(rows("a", text="other"))
    other.add(rows("a", text="more"))
    other.merge()
    shard = open_log(store, "run/1.0", "alive")
    before = shard.read({"a", "c"})
    assert texts(before) == [("a", ""), ("a", ""), ("a", ""), ("a", "more"), ("a", "other")]
    shard.add(rows("c"))
    shard.add(rows("d"))
    after = [*texts(before), ("c", "")]
    open_log(store, "run/2.0", "meanwhile").add(rows("x"))
    assert texts(shard.read_cached({"a", "c"})) == after
    assert not [key for key in reads if "meanwhile" in key]
    shard.merge()
    assert texts(shard.read_cached({"a", "c"})) == after
    assert texts(shard.read({"a", "c"})) == after
    assert max(reads.values()) == 1
    assert not [key for key in reads if "alive" in key]
    # The merge includes rows that the shard itself did not query.
    assert texts(open_log(store, "x", "y").read({"a", "b0", "d"})) == sorted([*after[:-1], ("b0", ""), ("d", "")])


def test_a_later_query_finds_rows_that_were_not_cached(store: Store, reads: Counter[str]) -> None:
    """A part whose cached rows do not include the requested ones is read again."""
    open_log(store, "w/0", "one").add(rows("a", "b", "c"))
    reader = open_log(store, "w/1", "two")
    assert texts(reader.read({"a", "b"})) == [("a", ""), ("b", "")]
    assert texts(reader.read({"b"})) == [("b", "")], "only the requested rows are returned from the cache"
    assert reads.total() == 1
    assert texts(reader.read({"b", "c"})) == [("b", ""), ("c", "")]
    assert reads.total() == 2


def test_merged_parts_leave_the_cache(store: Store, reads: Counter[str]) -> None:
    writer = open_log(store, "w/0", "one")
    for number in range(3):
        writer.add(rows("a", text=str(number) * 1_000_000))
    reader = open_log(store, "w/1", "two")
    before = texts(reader.read({"a"}))
    assert len(before) == 3
    writer.merge()
    del writer
    used = pa.total_allocated_bytes()
    assert texts(reader.read({"a"})) == before
    assert reads.total() == 4
    assert grew_by_less_than(1_000_000, used), "the three parts must leave the cache"


def test_only_requested_rows_of_foreign_parts_are_cached(store: Store, reads: Counter[str]) -> None:
    for number in range(5):
        open_log(store, f"w/{number}", "one").add(rows("a", *(f"{n}" for n in range(10_000)), text="x" * 100))
    reader, used = open_log(store, "v/0", "two"), pa.total_allocated_bytes()
    assert reader.read({"a"}).num_rows == 5
    assert reads.total() == 5
    assert grew_by_less_than(100_000, used)


def test_a_second_merge_is_visible_to_earlier_readers(store: Store) -> None:
    """If a merged part reused the name of an earlier one, readers would use their cached copy of the earlier part."""
    writer, reader = open_log(store, "w/0", "one"), open_log(store, "w/1", "two")
    writer.add(rows("a", text="1"))
    writer.add(rows("a", text="2"))
    writer.merge()
    assert len(texts(reader.read({"a"}))) == 2
    writer.add(rows("a", text="3"))
    writer.merge()
    assert [text for _, text in texts(reader.read({"a"}))] == ["1", "2", "3"]
    assert len(store.keys("log")) == 1


def test_parts_are_read_and_deleted_concurrently(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        open_log(store, f"w/0.{number}", "killed").add(rows(f"{number}"))
    read, delete, barrier = store.read, store.delete, Barrier(8, timeout=30)

    def after_barrier(action: Callable[[str], Any]) -> Callable[[str], Any]:
        return lambda key: barrier.wait() < 8 and action(key)

    monkeypatch.setattr(store, "read", after_barrier(read))
    monkeypatch.setattr(store, "delete", after_barrier(delete))
    writer = open_log(store, "w/0", "again")
    writer.merge()
    monkeypatch.undo()
    assert len(store.keys("log")) == 1
    assert open_log(store, "w/1", "reader").read({"0", "7"}).num_rows == 2


def test_a_part_merged_after_listing_is_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_log(store, "w/0", "one")
    writer.add(rows("a", text="1"))
    writer.add(rows("a", text="2"))
    keys = store.keys
    merged: list[str] = []

    def list_then_merge(prefix: str) -> list[str]:
        found = keys(prefix)
        if not merged:
            merged.extend(found)
            writer.merge()
        return found

    monkeypatch.setattr(store, "keys", list_then_merge)
    assert texts(open_log(store, "w/1", "reader").read({"a"})) == [("a", "1"), ("a", "2")]
    assert len(merged) == 2
    assert not set(merged) & set(keys("log"))


def test_a_part_added_during_listing_stays_cached(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: the part was not in the list, so it was dropped from the cache, and its rows from the result."""
    writer, keys = open_log(store, "w/0", "one"), store.keys

    def list_then_add(prefix: str) -> list[str]:
        found = keys(prefix)
        writer.add(rows("a"))
        return found

    monkeypatch.setattr(store, "keys", list_then_add)
    assert writer.read({"a"}).num_rows == 0
    assert texts(writer.read_cached({"a"})) == [("a", "")]


def test_a_listed_part_that_stays_absent_is_reported(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrite.append_log._READ_WAIT", 0.001)
    monkeypatch.setattr(store, "keys", lambda _: ["log/lost.parquet"])
    with pytest.raises(PyriteError, match=r"has no log/lost.parquet, though it lists it"):
        open_log(store, "w/1", "reader").read({"a"})
