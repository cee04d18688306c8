"""Ids as text and as numbers, and the compact set of ids."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite import identity
from pyrite.errors import PyriteError
from pyrite.identity import IdSet, keys, passage_id, passage_ids, query_id, query_ids


@given(st.lists(st.text()))
def test_ids_are_the_same_from_text_and_from_digits(texts: list[str]) -> None:
    passages, queries = [passage_id(text) for text in texts], [query_id(text) for text in texts]
    assert passage_ids(np.array([int(key, 16) for key in passages], np.uint64)).to_pylist() == passages
    assert query_ids(np.array([int(key[1:], 16) for key in queries], np.uint64)).to_pylist() == queries


@given(st.lists(st.text()), st.lists(st.text()), st.integers(0, 3))
def test_digits_are_those_of_the_ids(texts: list[str], others: list[str], start: int) -> None:
    """Also of slices, which Arrow reads from the middle of a buffer."""
    passages, queries = [passage_id(text) for text in texts], [query_id(text) for text in others]
    column = pa.chunked_array([pa.array(passages, pa.string())[start:], pa.array(queries, pa.string())[start:]])
    expected = [int(id, 16) for id in passages[start:]] + [int(id[1:], 16) for id in queries[start:]]
    assert keys(column).tolist() == expected


def test_an_id_of_another_length_is_an_error() -> None:
    with pytest.raises(PyriteError, match="'abc' does not have 16 characters"):
        keys(pa.chunked_array([["0" * 16, "abc"]]))


@given(st.lists(st.text(max_size=2)), st.lists(st.text(max_size=2)), st.integers(1, 5))
def test_an_id_set_has_what_was_added(texts: list[str], others: list[str], recent: int) -> None:
    ids, expected = IdSet(), set[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity.IdSet, "_MIN_RECENT", recent)
        for text in texts:
            assert ids.add(text) == (text not in expected)
            expected.add(text)
    assert [text in ids for text in [*texts, *others]] == [text in expected for text in [*texts, *others]]
