"""BM25 against values computed by hand from its definition, and against the package bm25s."""

from math import log
from unittest.mock import patch

import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.embedding.encoder import in_memory
from pyrite.evaluation import bm25

#: Without stopwords (the, to, a), they have 3, 5 and 2 words.
PASSAGES = ["aspirin thins blood", "the blood carries oxygen to all organs", "a walk helps"]

#: Few words, some of them equal, so that scores tie. One is a stopword, one is in no passage of most examples.
_TEXT = st.lists(st.sampled_from(["aspirin", "blood", "walk", "gout", "ice", "the"]), max_size=6).map(" ".join)


def ranked(passages: list[str], queries: list[str], k: int) -> bm25.Found:
    return bm25.rank(in_memory(passages), queries, k)


def weight(length: int, containing: int) -> float:
    """BM25 of a word that occurs once in a passage of ``length`` words, and in ``containing`` of the three passages."""
    inverse_document_frequency = log(1 + (3 - containing + 0.5) / (containing + 0.5))
    return inverse_document_frequency / (1 + 1.5 * (1 - 0.75 + 0.75 * length / ((3 + 5 + 2) / 3)))


def test_bm25_scores_equal_the_definition() -> None:
    scores, found = ranked(PASSAGES, ["Does ASPIRIN thin the blood?", "walk, blood"], 2)
    assert found.tolist() == [[0, 1], [2, 0]]
    assert scores[0].tolist() == pytest.approx([weight(3, 1) + weight(3, 2), weight(5, 2)], rel=1e-5)
    assert scores[1].tolist() == pytest.approx([weight(2, 1), weight(3, 2)], rel=1e-5)


def test_bm25_ranks_when_words_are_unknown() -> None:
    assert ranked(PASSAGES, ["xylophone", "the"], 5)[1].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert ranked(["the", "a"], ["the"], 2)[0].tolist() == [[0, 0]]


@given(st.lists(_TEXT, min_size=1, max_size=12), st.lists(_TEXT, max_size=5), st.integers(1, 14), st.integers(1, 5))
def test_bm25_equals_bm25s_with_ties_by_position(passages: list[str], queries: list[str], k: int, block: int) -> None:
    """In blocks of any size, and to the last bit. The package ``bm25s`` indexes all words at once."""
    with patch.multiple(bm25, _BLOCK=block, _QUERIES=2):
        scores, found = ranked(passages, queries, k)
    tokens = [bm25.tokenize(passage) for passage in passages]
    index = bm25s.BM25()
    if any(tokens):
        index.index(tokens, show_progress=False)
    for row, query in enumerate(queries):
        known = [word for word in bm25.tokenize(query) if any(word in each for each in tokens)]
        values = index.get_scores(known) if known else np.zeros(len(passages), np.float32)
        order = np.argsort(-values, kind="stable")[:k]
        assert found[row].tolist() == order.tolist()
        assert scores[row].tolist() == values[order].tolist()


def test_bm25_takes_words_of_text_without_spaces() -> None:
    _, found = ranked(["血液を運ぶ", "薬を飲む"], ["薬の飲み方"], 1)
    assert found.tolist() == [[1]]
