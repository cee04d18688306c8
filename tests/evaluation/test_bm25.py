"""BM25 against values computed by hand from its definition."""

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.evaluation.bm25 import best, rank

#: Without stopwords (the, to, a), they have 3, 5 and 2 words.
PASSAGES = ["aspirin thins blood", "the blood carries oxygen to all organs", "a walk helps"]


def weight(length: int, containing: int) -> float:
    """BM25 of a word that occurs once in a passage of ``length`` words, and in ``containing`` of the three passages."""
    inverse_document_frequency = log(1 + (3 - containing + 0.5) / (containing + 0.5))
    return inverse_document_frequency / (1 + 1.5 * (1 - 0.75 + 0.75 * length / ((3 + 5 + 2) / 3)))


def test_bm25_scores_equal_the_definition() -> None:
    scores, found = rank(PASSAGES, ["Does ASPIRIN thin the blood?", "walk, blood"], 2)
    assert found.tolist() == [[0, 1], [2, 0]]
    assert scores[0].tolist() == pytest.approx([weight(3, 1) + weight(3, 2), weight(5, 2)], rel=1e-5)
    assert scores[1].tolist() == pytest.approx([weight(2, 1), weight(3, 2)], rel=1e-5)


def test_bm25_ranks_when_words_are_unknown() -> None:
    assert rank(PASSAGES, ["xylophone", "the"], 5)[1].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert rank(["the", "a"], ["the"], 2)[0].tolist() == [[0, 0]]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=30), st.data())
def test_best_are_the_first_of_a_stable_sort(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    scores = np.array(values, dtype=np.float32)
    assert best(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


def test_bm25_takes_words_of_text_without_spaces() -> None:
    _, found = rank(["血液を運ぶ", "薬を飲む"], ["薬の飲み方"], 1)
    assert found.tolist() == [[1]]
