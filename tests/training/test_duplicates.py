"""Near-duplicates between training and held-out texts: the same as by comparing all pairs, and fast."""

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.training import duplicates, mining


def _find_across(texts: Sequence[str], held_out: Sequence[bool]) -> dict[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        index = duplicates.ShingleIndex(Path(folder) / "shingles")
        for text in texts:
            index.add(mining.shingles(text))
        found = index.find_across(np.array(held_out, np.int8), texts.__getitem__)
    return {position: other for position, other in enumerate(found.tolist()) if other >= 0}


def _use_small_parts(patch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    for name, largest in {"_BUFFERED": 100, "_PARTITIONS": 5, "_COMPARED": 4}.items():
        patch.setattr(duplicates, name, data.draw(st.integers(1, largest)))


_WORDS = st.lists(st.sampled_from("abc"), max_size=16)


@st.composite
def _related_texts(draw: st.DrawFn) -> list[str]:
    """Texts of a few words, of which some contain others or differ from them in one word."""
    texts = draw(st.lists(_WORDS, min_size=1, max_size=5))
    for _ in range(draw(st.integers(0, 6))):
        copied = list(draw(st.sampled_from(texts)))
        if copied and draw(st.booleans()):
            copied[draw(st.integers(0, len(copied) - 1))] = "x"
        texts.append(copied + draw(_WORDS))
    return [" ".join(words) for words in texts]


@given(_related_texts(), st.data())
def test_near_duplicates_are_those_of_all_pairs(texts: list[str], data: st.DataObject) -> None:
    held_out = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    sets = [mining.shingles(text) for text in texts]

    def is_pair(a: int, b: int) -> bool:
        small, large = sorted((sets[a], sets[b]), key=len)
        either = len(small) >= 5 or len(small & large) >= 0.8 * len(large)
        return held_out[a] != held_out[b] and either and mining.near_duplicates(small, large)

    positions = range(len(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "MIN_SHINGLES", 5)
        _use_small_parts(patch, data)
        found = _find_across(texts, held_out)
    assert set(found) == {a for a in positions if any(is_pair(a, b) for b in positions)}
    assert all(is_pair(a, b) for a, b in found.items())


@given(_related_texts(), st.data())
def test_pairs_are_all_near_duplicates(texts: list[str], data: st.DataObject) -> None:
    flags = st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))
    left, right = data.draw(flags), data.draw(flags)
    sets = [mining.shingles(text) for text in texts]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        _use_small_parts(patch, data)
        index = duplicates.ShingleIndex(Path(folder) / "shingles")
        for each in sets:
            index.add(each)
        found = index.find_pairs(np.array(left), np.array(right), texts.__getitem__)
    positions = range(len(texts))
    assert sorted(zip(*(each.tolist() for each in found), strict=True)) == [
        (a, b)
        for a in positions
        for b in positions
        if a != b and left[a] and right[b] and mining.near_duplicates(sets[a], sets[b])
    ]


def test_many_copies_of_a_template_are_compared_quickly() -> None:
    draw = random.Random(0)
    template = [f"t{n}" for n in range(100)]
    texts = [" ".join([*template, *(f"w{draw.randrange(10_000)}" for _ in range(10))]) for _ in range(6000)]
    started = time.process_time()
    assert len(_find_across(texts, [n % 3 == 0 for n in range(6000)])) == 6000
    assert time.process_time() - started < 8, "eight million pairs were visited"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    read = np.fromfile

    def read_and_fill(path: Path, dtype: type[np.uint64]) -> npt.NDArray[np.uint64]:
        found = read(path, dtype)
        path.unlink()
        path.symlink_to("/dev/full")
        return found

    monkeypatch.setattr(np, "fromfile", read_and_fill)
    with pytest.raises(OSError, match="No space left"):
        _find_across(["a b c d e", "a b c d e"], [False, True])


def test_a_text_with_exactly_the_required_share_is_found() -> None:
    words = [f"w{n}" for n in range(14)]
    smaller, larger = " ".join(words), " ".join([*words[:12], "x", "y", "z"])
    assert _find_across([smaller, larger], [False, True]) == {0: 1, 1: 0}, "8 of 10 shingles"
    assert _find_across([smaller, larger.replace("w11", "v")], [False, True]) == {}, "7 of 10 shingles"


def test_a_short_text_is_no_near_duplicate_of_a_longer_one() -> None:
    assert _find_across(["a b c d e f g h", "a b c d e f g", "d e f g h"], [False, True, True]) == {}, "3 of 4 shingles"


def test_a_repeated_shingle_counts_once() -> None:
    shared = " ".join(f"w{n}" for n in range(40))
    texts = [f"{shared} {'z ' * 20}", f"{shared} {' '.join(f'x{n}' for n in range(20))}"]
    assert _find_across(texts, [False, True]) == {0: 1, 1: 0}, "36 of 41 shingles"
