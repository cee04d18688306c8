"""Groups as connected components, their splits, and boilerplate."""

import random
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite import boilerplate, splitting
from pyrite.identity import query_ids
from pyrite.spec import SplitSpec

_Pairs = list[tuple[int, int]]


def _pairs(first: int, second: int) -> st.SearchStrategy[_Pairs]:
    return st.lists(st.tuples(st.integers(0, first - 1), st.integers(0, second - 1)), max_size=8)


def _columns(pairs: _Pairs) -> tuple[splitting.Numbers, splitting.Numbers]:
    first, second = np.array(pairs, int).reshape(-1, 2).T
    return first, second


@given(_pairs(4, 5), _pairs(5, 3))
def test_connected_nodes_have_the_same_component(topics_passages: _Pairs, passages_queries: _Pairs) -> None:
    edges = [(0, *_columns(topics_passages)), (1, *_columns(passages_queries))]
    found = splitting.connect((4, 5, 3), [(kind, first, kind + 1, second) for kind, first, second in edges])
    component = {(kind, node): int(label) for kind, labels in enumerate(found) for node, label in enumerate(labels)}
    group = {node: {node} for node in component}
    for kind, pairs in enumerate((topics_passages, passages_queries)):
        for a, b in pairs:
            joined = group[kind, a] | group[kind + 1, b]
            group |= dict.fromkeys(joined, joined)
    assert all((component[a] == component[b]) == (b in group[a]) for a in component for b in component)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(0, 3))
def test_groups_have_a_split_and_no_split_is_empty(sizes: list[int], seed: int) -> None:
    names = [f"g{n}" for n in range(len(sizes))]
    splits = splitting.assign(pa.array(names), np.array(sizes), SplitSpec(), seed)
    assert set(splits.tolist()) == {0, 1, 2} or len(sizes) < 3
    order = sorted(range(len(sizes)), key=lambda n: splitting.draw(seed, names[n]))
    shuffled = splitting.assign(
        pa.array([names[n] for n in order]), np.array([sizes[n] for n in order]), SplitSpec(), seed
    )
    assert [splits[n] for n in order] == shuffled.tolist(), "the order of the groups does not matter"


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_a_group_is_named_after_its_least_id(components: list[int], draw: random.Random) -> None:
    keys = np.array(draw.sample(range(100), len(components)), np.uint64)
    notes: list[str] = []
    groups = splitting.divide(
        np.array(components) * 2, keys, query_ids, "node {}".format, "queries", SplitSpec(), 0, notes
    )
    found = groups.find(np.array([*(2 * component for component in components), 1, 99]))
    assert found[-2:].tolist() == [-1, -1]
    members = defaultdict(list)
    for component, key in zip(components, query_ids(keys).to_pylist(), strict=True):
        members[component].append(key)
    named = [groups.names[group].as_py() for group in found[:-2]]
    assert named == [min(members[component]) for component in components]
    size = max(Counter(components).values())
    assert bool(notes) == (size > 0.15 * len(components))
    assert not notes or notes[0].startswith(f"{size:,} of {len(components):,} queries")


@given(st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=60))
def test_boilerplate_is_in_many_different_documents(documents: list[list[int]]) -> None:
    pairs = sorted({(document, passage) for document, passages in enumerate(documents) for passage in passages})
    contents = [sum(1 << passage for passage in set(passages)) for passages in documents]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boilerplate, "MIN_DOCUMENTS", 3)
        counts = boilerplate.count(*_columns(pairs), np.array(contents), 6)
    distinct = {frozenset(passages) for passages in documents}
    expected = Counter(passage for passages in distinct for passage in passages)
    assert counts.tolist() == [expected[n] if expected[n] >= 3 else 0 for n in range(6)]
