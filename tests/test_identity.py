"""Ids as text and as numbers, and the compact set of ids."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite import identity
from pyrite.identity import IdSet, passage_id, passage_ids, query_id, query_ids


@given(st.lists(st.text()))
def test_ids_are_the_same_from_text_and_from_digits(texts: list[str]) -> None:
    passages, queries = [passage_id(text) for text in texts], [query_id(text) for text in texts]
    assert passage_ids(np.array([int(key, 16) for key in passages], np.uint64)).to_pylist() == passages
    assert query_ids(np.array([int(key[1:], 16) for key in queries], np.uint64)).to_pylist() == queries


@given(st.lists(st.text(max_size=2)), st.lists(st.text(max_size=2)), st.integers(1, 5))
def test_an_id_set_has_what_was_added(texts: list[str], others: list[str], recent: int) -> None:
    ids, expected = IdSet(), set[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity.IdSet, "_MIN_RECENT", recent)
        for text in texts:
            assert ids.add(text) == (text not in expected)
            expected.add(text)
    assert [text in ids for text in [*texts, *others]] == [text in expected for text in [*texts, *others]]
