"""Merging mined examples: the same as by their simple definitions, and without conflicts."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.ragged import Lists
from pyrite.training.merging import group_neighbours, mix


def lists(values: Sequence[Sequence[int]]) -> Lists:
    owners = [owner for owner, own in enumerate(values) for _ in own]
    return Lists.group(np.array(owners, np.int64), np.array([v for own in values for v in own], np.int64), len(values))


def sort_key(seed: int, position: int) -> bytes:
    return hashlib.sha256(f"{seed} {position}".encode()).digest()


@given(kinds=st.lists(st.booleans()), ratio=st.none() | st.floats(0, 5), seed=st.integers(0, 9))
def test_mix_limits_easy_examples_only(kinds: list[bool], ratio: float | None, seed: int) -> None:
    easy = [position for position, is_hard in enumerate(kinds) if not is_hard]
    limit = len(easy) if ratio is None else round(ratio * sum(kinds))
    drawn = sorted(easy, key=lambda position: sort_key(seed, position))[:limit]
    used = mix(np.array(kinds, np.bool_), ratio, lambda position: sort_key(seed, position))
    assert used.tolist() == [is_hard or position in drawn for position, is_hard in enumerate(kinds)]


Example = tuple[int, list[int]]


def simple_groups(
    examples: Sequence[Example], candidates: Sequence[list[int]], barred: Sequence[list[int]], size: int
) -> list[int]:
    """The definition: a candidate's example joins if it has no conflict with any member."""

    def conflict(a: Example, b: Example) -> bool:
        return a[0] == b[0] or bool({*a[1]} & {*barred[b[0]]} or {*b[1]} & {*barred[a[0]]})

    groups = [-1] * len(examples)
    for position, example in enumerate(examples):
        if groups[position] >= 0:
            continue
        members = [position]
        groups[position] = position
        for candidate in candidates[example[0]]:
            for other, (_, passages) in enumerate(examples):
                wanted = len(members) < size and groups[other] < 0 and passages[0] == candidate
                if wanted and not any(conflict(examples[member], examples[other]) for member in members):
                    groups[other] = position
                    members.append(other)
    return groups


def groups_of(
    examples: Sequence[Example], candidates: Sequence[list[int]], barred: Sequence[list[int]], size: int
) -> list[int]:
    queries, passages = (np.array(column) for column in zip(*examples, strict=True))
    groups: list[int] = group_neighbours(queries, passages, lists(candidates), lists(barred), size).tolist()
    return groups


@given(st.data(), st.integers(1, 4), st.integers(1, 3))
def test_groups_are_those_of_the_definition(data: st.DataObject, size: int, width: int) -> None:
    passages = st.integers(0, 8)
    queries = data.draw(st.integers(1, 8))
    chosen = st.lists(passages, min_size=width, max_size=width, unique=True)
    examples = sorted(data.draw(st.lists(st.tuples(st.integers(0, queries - 1), chosen), min_size=1, max_size=10)))
    candidates = data.draw(st.lists(st.lists(passages, max_size=6, unique=True), min_size=queries, max_size=queries))
    few = st.lists(passages, max_size=2, unique=True)
    barred = data.draw(st.lists(few, min_size=queries, max_size=queries))
    assert groups_of(examples, candidates, barred, size) == simple_groups(examples, candidates, barred, size)


def test_mutual_hard_negatives_share_a_group() -> None:
    a, b, c, d, z = range(5)
    examples = [(0, [a, z]), (1, [b, z]), (2, [c, z]), (3, [d, a])]
    # Query 3 conflicts: its negative answers query 0.
    assert groups_of(examples, [[a, d, c], [b], [c, a], [d, a]], [[a], [b], [c], [d]], 4) == [0, 1, 0, 3]


@pytest.mark.parametrize("barred", [([0, 2], [2]), ([0], [2, 0]), ([0], [2, 4])])
def test_a_passage_that_may_be_relevant_is_not_grouped(barred: tuple[list[int], list[int]]) -> None:
    """Regression: a positive that the judge never saw with a query was grouped as that query's hard negative."""
    assert groups_of([(0, [0, 4]), (1, [2, 3])], [[0, 2], [2, 0]], list(barred), 4) == [0, 1]


def test_no_member_of_a_group_conflicts_with_another() -> None:
    """Example 2 would fit the first one, but its negative may be relevant to query 1."""
    examples = [(0, [0, 5]), (1, [1, 6]), (2, [2, 7])]
    assert groups_of(examples, [[0, 1, 2], [], []], [[0], [1, 7], [2]], 4) == [0, 0, 2]
    assert groups_of(examples, [[0, 1, 2], [], []], [[0], [1], [2, 6]], 4) == [0, 0, 2]
    assert groups_of(examples, [[0, 1, 2], [], []], [[0], [1], [2]], 4) == [0, 0, 0]
