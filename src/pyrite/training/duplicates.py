"""Finds near-duplicate passages between training and held-out data, without comparing all pairs."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pyrite.training.mining import CONTAINMENT, shingles

#: Texts with fewer shingles are short (10 shingles of 5 words are 14 words). A short text must have ``CONTAINMENT`` of
#: the larger text's shingles. Otherwise a heading would be a near-duplicate of every passage that quotes it.
MIN_SHINGLES = 10

#: The distinct shingles of a text as sorted 64-bit hashes.
Hashes = npt.NDArray[np.int64]


def find_across(texts: Sequence[str], held_out: Sequence[bool]) -> dict[int, int]:
    """Find the near-duplicates between held-out and other texts.

    Two texts are near-duplicates if the larger one has ``CONTAINMENT`` of the smaller one's shingles, and both are long
    enough (``MIN_SHINGLES``) or about as short. ``mining.near_duplicates`` has no rule for short texts, and says why.

    Only texts that share a rare shingle are compared (prefix filtering: Chaudhuri et al., 2006). If the smaller text
    has 100 shingles, a near-duplicate lacks at most 20 of them, so it has at least one of the 21 rarest.

    Args:
        held_out: whether each text is held out.

    Returns:
        For the position of each text that has a near-duplicate in the other group, the position of one of them.
    """
    hashes = [_hashes(text) for text in texts]
    found: dict[int, int] = {}
    for smaller_side in (False, True):
        index = _Index(hashes, [position for position, side in enumerate(held_out) if side != smaller_side])
        for position in (position for position, side in enumerate(held_out) if side == smaller_side):
            for other in index.larger(hashes[position]):
                # One near-duplicate per text is enough: all pairs of a thousand copies would be a million comparisons.
                if (position in found and other in found) or not _match(hashes[position], hashes[other]):
                    continue
                found.setdefault(position, other)
                found.setdefault(other, position)
    return found


def _hashes(text: str) -> Hashes:
    return np.unique(np.fromiter((hash(shingle) for shingle in shingles(text)), np.int64))


def _match(smaller: Hashes, larger: Hashes) -> bool:
    required = len(smaller) if len(smaller) >= MIN_SHINGLES else len(larger)
    return len(np.intersect1d(smaller, larger, assume_unique=True)) >= CONTAINMENT * required


class _Index:
    """Finds the texts ``members`` (positions in ``hashes``) by shingle. Memory: 16 bytes per shingle of each text."""

    def __init__(self, hashes: Sequence[Hashes], members: Sequence[int]) -> None:
        self._sizes = np.array([len(each) for each in hashes])
        own = [hashes[position] for position in members]
        shingle = np.concatenate([np.empty(0, np.int64), *own])
        order = np.argsort(shingle, kind="stable")
        self._shingles = shingle[order]
        self._owners = np.repeat(np.array(members, np.int64), [len(each) for each in own])[order]

    def larger(self, text: Hashes) -> list[int]:
        """The members that may be near-duplicates of ``text`` and have as many shingles or more, in ascending order."""
        first = np.searchsorted(self._shingles, text, "left")
        last = np.searchsorted(self._shingles, text, "right")
        prefix = len(text) - math.ceil(CONTAINMENT * len(text)) + 1
        rarest = np.argsort(last - first, kind="stable")[:prefix]
        owners = [self._owners[first[i] : last[i]] for i in rarest if last[i] > first[i]]
        if not owners:
            return []
        candidates = np.unique(np.concatenate(owners))
        result: list[int] = candidates[self._sizes[candidates] >= len(text)].tolist()
        return result
