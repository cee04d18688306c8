"""Cached judgments: read, deduplicated and merged."""

from pathlib import Path
from typing import Any

from pyrite.judges.base import Judge, Judgment, Missing, Pair
from pyrite.judges.cache import JudgmentCache
from pyrite.store import open_store


class FakeJudge(Judge):
    """A judge of cached judgments, which grades nothing."""

    def __init__(self, fingerprint: str = "f"):
        self.fingerprint = fingerprint

    async def grade(self, pair: Pair) -> Judgment | Missing:
        raise NotImplementedError


def row(query: str, passage: str, grade: int = 1, latency: float = 0.5) -> dict[str, Any]:
    return {"query_id": query, "passage_id": passage, "grade": grade, "p1": 1.0, "p2": 0.0, "p3": 0.0, "p4": 0.0,
            "expected": 1.0, "judge": "f", "prompt_tokens": 9, "cached_tokens": 0, "latency": latency,
            "context": "", "attempts": 1}  # fmt: skip


def test_files_of_all_writers_are_read_and_own_ones_merged(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    killed = JudgmentCache(store, FakeJudge(), "run/1.0", "first")
    killed.add([row("a", "1"), row("a", "2")])
    again = JudgmentCache(store, FakeJudge(), "run/1.0", "second")
    again.add([row("a", "2", grade=4, latency=0.1), row("b", "1")])
    other = JudgmentCache(store, FakeJudge(), "run/1.1", "third")
    other.add([row("a", "3")])
    JudgmentCache(store, FakeJudge("another-judge"), "run/1.0", "fourth").add([row("a", "4")])

    before = again.read({"a"})
    assert before["passage_id"].to_pylist() == ["1", "2", "3"], "each pair once, only of this judge and these queries"
    assert before["grade"].to_pylist() == [1, 4, 1]
    again.merge()
    assert again.read({"a"}).equals(before)
    assert again.read({"b"}).num_rows == 1
    names = sorted(path.name for path in (tmp_path / "judgments/f/run").iterdir())
    assert names == ["1.0.second.000001.merged.parquet", "1.1.third.000000.parquet"], (
        "other writers' files are not merged"
    )
    again.merge()
    assert again.read({"a"}).equals(before), "merging twice loses nothing"


def test_read_retries_if_files_are_merged_meanwhile(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    JudgmentCache(store, FakeJudge(), "w", "killed").add([row("a", "1")])
    writer = JudgmentCache(store, FakeJudge(), "w", "alive")
    writer.add([row("a", "2")])
    listed = store.keys

    def keys(prefix: str) -> list[str]:
        found = listed(prefix)
        store.keys = listed  # type: ignore[method-assign]
        writer.merge()
        assert not set(found) & set(listed(prefix)), "the listed files are deleted before they are read"
        return found

    reader = JudgmentCache(store, FakeJudge(), "w", "reader")
    store.keys = keys  # type: ignore[method-assign]
    assert reader.read({"a"})["passage_id"].to_pylist() == ["1", "2"]


def test_an_empty_cache_is_an_empty_table(tmp_path: Path) -> None:
    assert JudgmentCache(open_store(str(tmp_path)), FakeJudge(), "w", "a").read({"a"}).num_rows == 0
