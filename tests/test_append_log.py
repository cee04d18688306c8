"""AppendLog: parts are appended, read and merged, and none stays in memory."""

import time
from collections.abc import Callable
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyrite.append_log import AppendLog
from pyrite.errors import PyriteError
from pyrite.store import Store, open_store

SCHEMA = pa.schema([("key", pa.string()), ("text", pa.string())])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


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


def test_results_are_read_appended_and_merged(store: Store) -> None:
    """A shard's work: read earlier results, append, merge."""
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
    shard.merge()
    assert texts(shard.read({"a", "c"})) == [*texts(before), ("c", "")]
    # The merge includes rows that the shard itself did not query.
    everything = open_log(store, "x", "y").read({"a", "b0", "d"})
    assert texts(everything) == sorted([*texts(before), ("d", ""), ("b0", "")])


def test_a_log_holds_no_rows_in_memory(store: Store) -> None:
    used = pa.total_allocated_bytes()
    logs = [open_log(store, f"w/{number}", "one") for number in range(5)]
    for log in logs:
        log.add(rows("a", *(f"{n}" for n in range(10_000)), text="x" * 100))
        log.add(rows("b"))
        assert log.read({"a"}).num_rows
        log.merge()
    assert grew_by_less_than(100_000, used)


def test_merged_parts_have_bounded_sizes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrite.append_log._MERGED_ROWS", 10)
    killed, again = open_log(store, "w/0", "killed"), open_log(store, "w/0", "again")
    for log in (killed, again):
        for number in range(15):
            log.add(rows(f"{log is again}{number}"))
    again.merge()
    sizes = [pq.read_metadata(pa.BufferReader(store.read(key))).num_rows for key in store.keys("log")]
    assert sizes == [10, 10, 10]
    found: list[int] = []
    open_log(store, "w/1", "reader").scan(lambda part: found.append(part.num_rows))
    assert found == sizes
    keys = store.keys("log")
    again.merge()
    assert store.keys("log") == keys, "merged parts are not merged again"


def test_an_interrupted_merge_leaves_no_part(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another attempt at the same work that listed the parts earlier merges them."""
    monkeypatch.setattr("pyrite.append_log._MERGED_ROWS", 4)
    log = open_log(store, "w/0", "one")
    for number in range(20):
        log.add(rows(f"{number}"))
    before, read = store.keys("log"), store.read

    def deleted_meanwhile(key: str) -> bytes:
        if key == before[12]:
            assert set(store.keys("log")) > set(before), "a part was merged before"
            store.delete(key)
        return read(key)

    monkeypatch.setattr(store, "read", deleted_meanwhile)
    log.merge()
    assert store.keys("log") == [key for key in before if key != before[12]]


def test_a_retry_does_not_repeat_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrite.append_log._READ_WAIT", 0.001)
    for number in range(3):
        open_log(store, f"w/{number}", "one").add(rows(f"{number}"))
    keys, listed = store.keys, list[str]()

    def list_with_a_lost_part(prefix: str) -> list[str]:
        listed.append(prefix)
        return [*keys(prefix), *(["log/lost.parquet"] if len(listed) == 1 else [])]

    monkeypatch.setattr(store, "keys", list_with_a_lost_part)
    assert texts(open_log(store, "w/3", "reader").read({"0", "1", "2"})) == [("0", ""), ("1", ""), ("2", "")]
    assert len(listed) == 2


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


def test_a_listed_part_that_stays_absent_is_reported(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrite.append_log._READ_WAIT", 0.001)
    monkeypatch.setattr(store, "keys", lambda _: ["log/lost.parquet"])
    with pytest.raises(PyriteError, match=r"has no log/lost.parquet, though it lists it"):
        open_log(store, "w/1", "reader").read({"a"})
