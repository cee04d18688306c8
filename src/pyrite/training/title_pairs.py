"""Training examples from titles: the query is a passage's title, the positive its text without the title. Pure.

They need neither questions nor a judge, so they can cover passages that no training query asks about.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pyrite.identity import normalise, query_id

#: The ``kind`` of these examples.
TITLE = "title"

#: A title with more passages gives no pair: it says little about each of them ("Introduction").
MAX_PASSAGES = 100


class TitledPassage(NamedTuple):
    """A passage. ``names_subject``: models read its title before its text, and it has no other title."""

    passage_id: str
    title: str
    names_subject: bool


class TitlePair(NamedTuple):
    """A title as the query, with its passages by id. ``relevant``: those that must never be its negatives."""

    query_id: str
    title: str
    positive: str
    negatives: tuple[str, ...]
    relevant: frozenset[str]


def title_pairs(
    passages: Sequence[TitledPassage],
    limit: int,
    num_negatives: int,
    is_held_out: Callable[[str], bool],
    relevant: Mapping[str, set[str]],
    sort_key: Callable[[str], bytes],
) -> tuple[list[TitlePair], int]:
    """At most ``limit`` pairs, and the number of passages whose title ``is_held_out`` excludes.

    A passage that starts with its title gives no pair, because its text would name the title; nor does one with several
    titles, or one whose title has more than ``MAX_PASSAGES`` passages. All passages with a title are relevant to it.
    Negatives have other titles, and no judge has graded them.

    Args:
        is_held_out: whether a title repeats a held-out query.
        relevant: the relevant passages of training queries by query id, for titles that are the text of a query.
        sort_key: the pseudo-random order of passage ids in which pairs are drawn.

    Returns:
        No pair if there are at most ``num_negatives`` titles.
    """
    of_title: dict[str, set[str]] = defaultdict(set)
    for passage in passages:
        of_title[normalise(passage.title)].add(passage.passage_id)
    usable = [p for p in passages if p.names_subject and len(of_title[normalise(p.title)]) <= MAX_PASSAGES]
    drawn = sorted((p for p in usable if not is_held_out(p.title)), key=lambda p: sort_key(p.passage_id))
    dropped = len(usable) - len(drawn)
    by_title: dict[str, list[str]] = defaultdict(list)
    for passage in drawn:
        by_title[normalise(passage.title)].append(passage.passage_id)
    titles = list(by_title)
    if len(titles) <= num_negatives:
        return [], dropped
    position = {title: number for number, title in enumerate(titles)}
    pairs = []
    for number, passage in enumerate(drawn[:limit]):
        title = normalise(passage.title)
        others = [by_title[titles[(position[title] + i) % len(titles)]] for i in range(1, num_negatives + 1)]
        negatives = tuple(other[number % len(other)] for other in others)
        query = query_id(title)
        protected = frozenset(of_title[title] | relevant.get(query, set()))
        pairs.append(TitlePair(query, " ".join(passage.title.split()), passage.passage_id, negatives, protected))
    return pairs, dropped
