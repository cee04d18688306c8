"""Decisions about mined examples that need all of them. Pure functions on numbers instead of ids, to save memory."""

from collections.abc import Callable

import numpy as np

from pyrite.ragged import Lists, Mask, Numbers


def mix(is_hard: Mask, easy_per_hard: float | None, sort_key: Callable[[int], bytes]) -> Mask:
    """Which examples to use: all hard ones, and at most ``easy_per_hard`` times as many easy ones.

    Args:
        is_hard: of each example.
        sort_key: returns the pseudo-random sort key of an example, by which easy ones are drawn.
    """
    used = np.ones(len(is_hard), np.bool_)
    easy = np.flatnonzero(~is_hard)
    if easy_per_hard is not None and len(easy):
        digests = np.frombuffer(b"".join(map(sort_key, easy.tolist())), ">u8").reshape(len(easy), -1)
        order = easy[np.lexsort(digests.T[::-1])]
        used[order[round(easy_per_hard * (len(is_hard) - len(easy))) :]] = False
    return used


def group_neighbours(queries: Numbers, passages: Numbers, candidates: Lists, barred: Lists, size: int) -> Numbers:
    """A group number for each example. A group joins an example with those whose positives are its candidates.

    In a batch, an example's positive is a negative of the others, and a neighbour's positive is a hard one at no extra
    encoding cost. Greedy, in the given order. A group has at most ``size`` examples and no conflicts.

    Args:
        queries: of each example.
        passages: of each example, the positive, then the negatives (two-dimensional; numbered from 0).
        candidates: of each query, best first.
        barred: of each query, the passages that must not be in its group: those relevant to it, and the candidates that
            were not judged, which may be relevant.
    """
    groups = np.full(len(queries), -1)
    count = 1 + int(max(passages.max(initial=-1), candidates.values.max(initial=-1)))
    with_positive = Lists.group(passages[:, 0], np.arange(len(queries)), count)
    for position, query in enumerate(queries.tolist()):
        if groups[position] >= 0:
            continue
        groups[position] = position
        neighbours = with_positive.take(candidates[query]).values
        members, left = {query}, size - 1
        held, bars = set(passages[position].tolist()), set(barred[query].tolist())
        for other in neighbours[groups[neighbours] < 0].tolist():
            if not left:
                break
            other_query, other_passages = int(queries[other]), passages[other].tolist()
            if other_query in members or not bars.isdisjoint(other_passages):
                continue
            other_bars = barred[other_query].tolist()
            if held.isdisjoint(other_bars):
                groups[other] = position
                members.add(other_query)
                held.update(other_passages)
                bars.update(other_bars)
                left -= 1
    return groups
