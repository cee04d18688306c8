"""Training examples from titles: the query is a passage's title, the positive its text without the title. Pure.

They need neither questions nor a judge, so they can cover passages that no training query asks about.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pyrite.identity import normalise, query_id
from pyrite.judges.base import GRADES
from pyrite.words import words

#: The ``kind`` of these examples.
KIND = "title"


class TitledPassage(NamedTuple):
    """A passage. ``has_context``: whether models read its title before its text.

    ``is_ambiguous``: several documents contain it, and ``title`` is that of the first one only.
    """

    passage_id: str
    title: str
    text: str
    has_context: bool
    is_ambiguous: bool = False


def title_pairs(
    passages: Sequence[TitledPassage],
    limit: int,
    num_negatives: int,
    held_out: Iterable[str],
    relevant: Mapping[str, set[str]],
    seed: str,
) -> tuple[list[dict[str, Any]], int]:
    """At most ``limit`` examples, drawn by ``seed``, and the number of pairs that ``held_out`` excludes.

    A passage that starts with its title gives no pair, because its text would name the title; nor does one with several
    titles. All passages with a title are relevant to it. Negatives have other titles, and no judge has graded them.

    Args:
        held_out: texts of queries. A title with the words of one of them gives no pair.
        relevant: the relevant passages of training queries by query id, for titles that are the text of a query.

    Returns:
        Rows of ``tables.examples`` without ``iteration`` and ``group``. Empty if there are at most ``num_negatives``
        titles, or none.
    """
    of_title: dict[str, set[str]] = defaultdict(set)
    for passage in passages:
        of_title[normalise(passage.title)].add(passage.passage_id)
    excluded = {_content(text) for text in held_out}
    usable = [passage for passage in passages if passage.has_context and not passage.is_ambiguous]
    drawn = [passage for passage in usable if _content(passage.title) not in excluded]
    dropped = len(usable) - len(drawn)
    drawn.sort(key=lambda passage: hashlib.sha256(f"{seed} {passage.passage_id}".encode()).digest())
    by_title: dict[str, list[TitledPassage]] = defaultdict(list)
    for passage in drawn:
        by_title[normalise(passage.title)].append(passage)
    titles = list(by_title)
    if len(titles) <= num_negatives:
        return [], dropped
    position = {title: number for number, title in enumerate(titles)}
    rows = []
    for number, positive in enumerate(drawn[:limit]):
        title = normalise(positive.title)
        others = [by_title[titles[(position[title] + i) % len(titles)]] for i in range(1, num_negatives + 1)]
        negatives = [other[number % len(other)] for other in others]
        query = query_id(title)
        rows.append(_row(query, positive, negatives, of_title[title] | relevant.get(query, set())))
    return rows, dropped


def _content(text: str) -> tuple[str, ...]:
    """The words of ``text`` without case and punctuation."""
    return tuple(words(normalise(text), punctuation=False))


def _row(
    query: str, positive: TitledPassage, negatives: Sequence[TitledPassage], relevant: Iterable[str]
) -> dict[str, Any]:
    return {
        "query_id": query,
        "positive_id": positive.passage_id,
        "negative_ids": [negative.passage_id for negative in negatives],
        "relevant_ids": sorted(relevant),
        "kind": KIND,
        "anchor": " ".join(positive.title.split()),
        "positive": positive.text,
        **{f"negative_{i}": negative.text for i, negative in enumerate(negatives, 1)},
        "label": [float(max(GRADES)), *[float(min(GRADES))] * len(negatives)],
    }
