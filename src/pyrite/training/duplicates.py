"""Finds near-duplicate passages between training and held-out data, without comparing all pairs."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyrite.training.mining import CONTAINMENT, Shingles, near_duplicates, shingles

#: Texts with fewer shingles are short (10 shingles of 5 words are 14 words). A short text must have ``CONTAINMENT`` of
#: the larger text's shingles. Otherwise a heading would be a near-duplicate of every passage that quotes it.
MIN_SHINGLES = 10

#: 64-bit hashes of shingles. The first byte selects a partition.
Hashes = npt.NDArray[np.uint64]

#: A posting is the 32 bits of a shingle's hash after the first byte, and the 32-bit number of a text that contains it.
Postings = npt.NDArray[np.uint64]

#: Files of a large index, at most 256, and the postings in memory before they are written to the files.
_PARTITIONS = 256
_BUFFERED = 1 << 20

_TEXT = np.uint64(0xFFFF_FFFF)

#: Texts that are compared together, and texts whose hashes are in memory.
_COMPARED = 4096
_CACHED = 8192


class ShingleIndex:
    """The texts that contain each shingle, on disk: 8 bytes for each shingle of each text.

    The hashes are those of one process. The order of texts and hashes does not change what is found.
    """

    def __init__(self, folder: Path) -> None:
        """``folder`` is created."""
        folder.mkdir(parents=True)
        self._folder = folder
        self._texts = 0
        self._hashes: list[Hashes] = []
        self._buffered = 0
        self._partitions = 1  # unless there are more postings than the buffer takes
        self._boundaries: list[int] = []

    def add(self, shingles: Shingles) -> None:
        """Add the next text by its shingles. Texts are numbered from 0."""
        self._hashes.append(_hashes(shingles))
        self._texts += 1
        self._buffered += len(shingles)
        if self._buffered >= _BUFFERED:
            self._partitions = _PARTITIONS
            self._write()

    def _write(self) -> None:
        """Append the buffered postings to the files of their partitions."""
        hashes = np.concatenate([np.empty(0, np.uint64), *self._hashes])
        texts = np.arange(self._texts - len(self._hashes), self._texts, dtype=np.uint64)
        postings = _key(hashes) | np.repeat(texts, list(map(len, self._hashes)))
        partition = self._partition(hashes)
        postings = postings[np.argsort(partition, kind="stable")]
        ends = np.cumsum(np.bincount(partition, minlength=self._partitions))
        for number, part in enumerate(np.split(postings, ends[:-1])):
            with self._path(number).open("ab") as file:
                file.write(part.data)
        self._hashes, self._buffered = [], 0

    def _partition(self, hashes: Hashes) -> npt.NDArray[np.uint16]:
        first_byte = (hashes >> np.uint64(56)).astype(np.uint16)
        return first_byte * np.uint16(self._partitions) >> np.uint16(8)

    def find_across(self, sides: npt.NDArray[np.int8], text_of: Callable[[int], str]) -> npt.NDArray[np.int32]:
        """Find the near-duplicates between held-out and other texts. The index can be used once.

        Two texts are near-duplicates if the larger one has ``CONTAINMENT`` of the smaller one's shingles, and both are
        long enough (``MIN_SHINGLES``) or about as short. ``mining.near_duplicates`` has no rule for short texts, and
        says why.

        Only texts are compared of which the smaller has ``CONTAINMENT`` of its shingles anywhere on the other side, and
        that share a rare shingle (prefix filtering: Chaudhuri et al., 2006). If the smaller text has 100 shingles, a
        near-duplicate lacks at most 20 of them, so it has at least one of the 21 rarest.

        Args:
            sides: for each text, 1 if it is held out, 0 if it is not, -1 if it is not compared.
            text_of: returns a text by its number.

        Returns:
            For each text, the number of a near-duplicate on the other side, or -1.
        """
        self._write()
        sizes, shared = self._keep_shared(sides, across=True)

        @functools.lru_cache(_CACHED)
        def hashes_of(text: int) -> Hashes:
            return _hashes(shingles(text_of(text)))

        found = np.full(len(sides), -1, np.int32)
        for side in (0, 1):
            smaller = np.flatnonzero((sides == side) & (shared >= CONTAINMENT * sizes) & (sizes > 0))
            for start in range(0, len(smaller), _COMPARED):
                texts = smaller[start : start + _COMPARED].tolist()
                candidates = self._candidates([hashes_of(text) for text in texts], 1 - side)
                for text, others in zip(texts, candidates, strict=True):
                    others = others[sizes[others] >= sizes[text]]
                    # One near-duplicate per text is enough: all pairs of a thousand copies would be a million
                    # comparisons.
                    if found[text] < 0:
                        own = hashes_of(text)
                        first = next((other for other in _ascending(others) if _match(own, hashes_of(other))), None)
                        if first is None:
                            continue
                        found[text] = first
                        found[first] = text if found[first] < 0 else found[first]
                        others = others[others > first]
                    for other in _ascending(others[found[others] < 0]):
                        if _match(hashes_of(text), hashes_of(other)):
                            found[other] = text
        return found

    def find_pairs(
        self, left: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_], text_of: Callable[[int], str]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Find all pairs of a text of ``left`` and a near-duplicate of it (``mining.near_duplicates``) of ``right``.

        It compares as few texts as ``find_across``. A text may be in both. The index can be used once.

        Returns:
            The texts of ``left``, and the near-duplicate of each.
        """
        self._write()
        sizes, shared = self._keep_shared(np.where(left | right, 1, -1).astype(np.int8), across=False)
        shingles_of = functools.lru_cache(_CACHED)(lambda text: shingles(text_of(text)))
        pairs = []
        smaller = np.flatnonzero((left | right) & (shared >= CONTAINMENT * sizes))
        for start in range(0, len(smaller), _COMPARED):
            texts = smaller[start : start + _COMPARED].tolist()
            candidates = self._candidates([_hashes(shingles_of(text)) for text in texts], 1)
            for text, others in zip(texts, candidates, strict=True):
                # Of two texts of one size, the first counts as the smaller one.
                larger = (sizes[others] > sizes[text]) | ((sizes[others] == sizes[text]) & (others > text))
                wanted = (left[text] & right[others]) | (right[text] & left[others])
                for other in np.unique(others[larger & wanted]).tolist():
                    if near_duplicates(shingles_of(text), shingles_of(other)):
                        pairs.append((text, other))
        both = np.array(pairs, np.int64).reshape(-1, 2)
        both = np.concatenate([both, both[:, ::-1]])
        both = both[left[both[:, 0]] & right[both[:, 1]]]
        return both[:, 0], both[:, 1]

    def _keep_shared(
        self, sides: npt.NDArray[np.int8], *, across: bool
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Reduce the index to the shingles that both sides have: each file has the postings of side 0, then of side 1.

        Args:
            across: if False, the shingles that several texts have, whatever their sides.

        Returns:
            For each text, the number of its shingles, and the number of those that are shared.
        """
        sizes, shared = np.zeros(len(sides), np.uint32), np.zeros(len(sides), np.uint32)
        for number in range(self._partitions):
            path = self._path(number)
            postings = np.fromfile(path, np.uint64)
            postings = postings[sides[_texts(postings)] >= 0]
            postings.sort()
            # A text may contain a shingle several times.
            postings = postings[np.diff(postings, prepend=~np.uint64(0)) != 0]
            texts = _texts(postings)
            np.add.at(sizes, texts, 1)
            side = sides[texts]
            starts = np.flatnonzero(np.diff(postings >> np.uint64(32), prepend=_TEXT + np.uint64(1)))
            lengths = np.diff(starts, append=len(postings))
            held_out = np.add.reduceat(side, starts, dtype=np.int64) if len(starts) else lengths
            mixed = np.repeat((held_out > 0) & (held_out < lengths) if across else lengths > 1, lengths)
            np.add.at(shared, texts[mixed], 1)
            parts = [postings[mixed & (side == each)] for each in (0, 1)]
            path.write_bytes(np.concatenate(parts).data)  # `tofile` does not report a full disk
            self._boundaries.append(len(parts[0]))
        return sizes, shared

    def _candidates(self, texts: Sequence[Hashes], side: int) -> Iterator[npt.NDArray[np.int64]]:
        """For each of ``texts``, the texts on ``side`` that may be larger near-duplicates of it, in any order.

        A text may occur several times.
        """
        shingles, shingles_of = np.unique(np.concatenate(texts), return_inverse=True)
        frequency = np.zeros(len(shingles), np.int64)
        for part, _, first, last in self._look_up(shingles, side):
            frequency[part] = last - first
        rarest = []
        for own in np.split(shingles_of, np.cumsum([len(each) for each in texts])[:-1]):
            prefix = len(own) - math.ceil(CONTAINMENT * len(own)) + 1
            chosen = own[np.argsort(frequency[own], kind="stable")[:prefix]]
            rarest.append(chosen[frequency[chosen] > 0])
        needed = np.unique(np.concatenate(rarest))
        owners: dict[int, npt.NDArray[np.int64]] = {}
        for part, postings, first, last in self._look_up(shingles[needed], side):
            for shingle, start, end in zip(needed[part].tolist(), first.tolist(), last.tolist(), strict=True):
                owners[shingle] = _texts(postings[start:end])
        for chosen in rarest:
            yield np.concatenate([np.empty(0, np.int64), *(owners[each] for each in chosen.tolist())])

    def _look_up(self, shingles: Hashes, side: int) -> Iterator[tuple[slice, Postings, Any, Any]]:
        """For each partition: the slice of ``shingles`` (sorted) in it, its postings, and the ranges in them."""
        edges = np.searchsorted(self._partition(shingles), np.arange(self._partitions + 1)).tolist()
        for number, (start, end) in enumerate(itertools.pairwise(edges)):
            path, boundary = self._path(number), self._boundaries[number]
            if start < end and path.stat().st_size:
                both = np.memmap(path, np.uint64, "r")
                postings = both[boundary:] if side else both[:boundary]
                key = _key(shingles[start:end])
                yield (
                    slice(start, end),
                    postings,
                    np.searchsorted(postings, key),
                    np.searchsorted(postings, key | _TEXT, "right"),
                )

    def _path(self, partition: int) -> Path:
        return self._folder / str(partition)


def _key(hashes: Hashes) -> Postings:
    """The postings of the shingles ``hashes`` with text 0."""
    return (hashes << np.uint64(8)) & ~_TEXT


def _texts(postings: Postings) -> npt.NDArray[np.int64]:
    return (postings & _TEXT).astype(np.int64)


def _ascending(texts: npt.NDArray[np.int64]) -> Iterator[int]:
    """The distinct ``texts`` in ascending order. They are sorted only if more than the first one is used."""
    if len(texts):
        yield int(first := texts.min())
        yield from np.unique(texts[texts > first]).tolist()


def _hashes(shingles: Shingles) -> Hashes:
    return np.fromiter(shingles, np.int64, len(shingles)).view(np.uint64)


def _match(smaller: Hashes, larger: Hashes) -> bool:
    required = len(smaller) if len(smaller) >= MIN_SHINGLES else len(larger)
    return len(np.intersect1d(smaller, larger, assume_unique=True)) >= CONTAINMENT * required
