"""Training examples from titles: the query is a passage's title, the positive its text without the title. Pure.

They need neither questions nor a judge, so they can cover passages that no training query asks about. Passages are
numbers, and titles the digits of the ids of queries with the same text, because all passages of the corpus take part.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pyrite.identity import Keys
from pyrite.ragged import Lists, Mask, Numbers

#: The ``kind`` of these examples.
TITLE = "title"

#: A title with more passages gives no pair: it says little about each of them ("Introduction").
MAX_PASSAGES = 100


class TitlePairs(NamedTuple):
    """Pairs of titles with passages.

    Attributes:
        titles: of each pair.
        passages: of each pair, the positive, then the negatives (two-dimensional).
        relevant: of each pair, all passages with its title.
    """

    titles: Keys
    passages: Numbers
    relevant: Lists


def title_pairs(
    titles: Keys,
    names_subject: Mask,
    is_held_out: Mask,
    limit: int,
    num_negatives: int,
    sort_keys: Callable[[Numbers], Keys],
) -> tuple[TitlePairs, int]:
    """At most ``limit`` pairs, and the number of passages whose title ``is_held_out`` excludes.

    A passage that starts with its title gives no pair, because its text would name the title; nor does one with several
    titles, or one whose title has more than ``MAX_PASSAGES`` passages. All passages with a title are relevant to it.
    Negatives have other titles, and no judge has graded them.

    Args:
        titles: of each passage.
        names_subject: whether models read a passage's title before its text, and it has no other title.
        is_held_out: whether a passage's title repeats a held-out query.
        sort_keys: returns the pseudo-random sort keys of passages, by which pairs are drawn.

    Returns:
        No pair if there are at most ``num_negatives`` titles.
    """
    _, of_title, counts = np.unique(titles, return_inverse=True, return_counts=True)
    usable = np.flatnonzero(names_subject & (counts[of_title] <= MAX_PASSAGES))
    drawn = usable[~is_held_out[usable]]
    drawn = drawn[np.argsort(sort_keys(drawn), kind="stable")]
    dropped = len(usable) - len(drawn)
    # Titles are numbered in the order in which they are drawn.
    found, first, position = np.unique(of_title[drawn], return_index=True, return_inverse=True)
    number_of = np.argsort(np.argsort(first))
    numbers = number_of[position]
    if len(found) <= num_negatives:
        drawn, numbers = drawn[:0], numbers[:0]
    with_title = Lists.group(numbers, drawn, len(found))
    positives = drawn[:limit]
    columns = [positives]
    for distance in range(1, num_negatives + 1):
        other = (numbers[:limit] + distance) % max(1, len(found))
        nth = np.arange(len(positives)) % np.maximum(1, with_title.lengths[other])
        columns.append(with_title.values[with_title.starts[other] + nth])
    relevant = Lists.group(of_title, np.arange(len(titles)), len(counts)).take(of_title[positives])
    return TitlePairs(titles[positives], np.column_stack(columns), relevant), dropped
