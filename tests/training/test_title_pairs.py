"""Training examples from the titles of passages."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pyrite.identity import Keys, normalise, query_id
from pyrite.ragged import Numbers
from pyrite.training.title_pairs import MAX_PASSAGES, title_pairs


class Titled(NamedTuple):
    title: str
    names_subject: bool = True
    is_held_out: bool = False


class Pair(NamedTuple):
    title: str
    positive: int
    negatives: list[int]
    relevant: list[int]


def sort_keys(rows: Numbers) -> Keys:
    """An order that is not that of the rows."""
    return (rows * 7 % 11).astype(np.uint64)


def pairs_of(passages: list[Titled], limit: int, num_negatives: int) -> tuple[list[Pair], int]:
    keys = [int(query_id(each.title)[1:], 16) for each in passages]
    title_of = {key: normalise(each.title) for key, each in zip(keys, passages, strict=True)}
    columns = (np.array([each[i] for each in passages], np.bool_) for i in (1, 2))
    found, dropped = title_pairs(np.array(keys, np.uint64), *columns, limit, num_negatives, sort_keys)
    pairs = [
        Pair(title_of[title], positive, negatives, found.relevant[number].tolist())
        for number, (title, (positive, *negatives)) in enumerate(
            zip(found.titles.tolist(), found.passages.tolist(), strict=True)
        )
    ]
    return pairs, dropped


def simple_pairs(passages: list[Titled], limit: int, num_negatives: int) -> tuple[list[Pair], int]:
    """The definition, with a dict of titles."""
    of_title: dict[str, list[int]] = defaultdict(list)
    for row, each in enumerate(passages):
        of_title[normalise(each.title)].append(row)
    usable = [
        row
        for row, each in enumerate(passages)
        if each.names_subject and len(of_title[normalise(each.title)]) <= MAX_PASSAGES
    ]
    drawn = sorted((r for r in usable if not passages[r].is_held_out), key=lambda r: sort_keys(np.array([r]))[0])
    by_title: dict[str, list[int]] = defaultdict(list)
    for row in drawn:
        by_title[normalise(passages[row].title)].append(row)
    titles, pairs = list(by_title), []
    for number, row in enumerate(drawn[:limit] if len(titles) > num_negatives else []):
        title = normalise(passages[row].title)
        others = [by_title[titles[(titles.index(title) + i) % len(titles)]] for i in range(1, num_negatives + 1)]
        pairs.append(Pair(title, row, [other[number % len(other)] for other in others], of_title[title]))
    return pairs, len(usable) - len(drawn)


@given(
    passages=st.lists(
        st.builds(
            Titled, st.sampled_from(["Gout", "gout ", "Asthma", "Lupus", "Acne", ""]), st.booleans(), st.booleans()
        ),
        max_size=20,
    ),
    limit=st.integers(1, 30),
    negatives=st.integers(1, 4),
)
def test_pairs_are_those_of_the_definition(passages: list[Titled], limit: int, negatives: int) -> None:
    pairs, dropped = pairs_of(passages, limit, negatives)
    assert (pairs, dropped) == simple_pairs(passages, limit, negatives)
    for pair in pairs:
        assert len({pair.title, *(normalise(passages[row].title) for row in pair.negatives)}) == negatives + 1


def test_held_out_questions_are_no_titles() -> None:
    passages = [Titled("What is gout?", True, True), Titled("WHAT IS GOUT?", True, True), *map(Titled, ("A", "B"))]
    pairs, dropped = pairs_of(passages, 9, 1)
    assert {pair.title for pair in pairs} == {"a", "b"}
    assert dropped == 2


def test_passages_that_start_with_their_title_only_protect() -> None:
    pairs, _ = pairs_of([Titled("Gout"), Titled("Gout", names_subject=False), Titled("Lupus")], 9, 1)
    assert {pair.positive: pair.relevant for pair in pairs} == {0: [0, 1], 2: [2]}


def test_a_title_of_too_many_passages_gives_no_pair() -> None:
    passages = [Titled("Introduction")] * (MAX_PASSAGES + 1) + [Titled("Gout"), Titled("Flu")]
    pairs, dropped = pairs_of(passages, 999, 1)
    assert ({pair.title for pair in pairs}, dropped) == ({"gout", "flu"}, 0)
