"""BM25, the keyword search that every embedding model is compared with.

It is Robertson's BM25 as Lucene implements it (Kamphuis et al.: "Which BM25 Do You Mean?", ECIR 2020, "Lucene
(accurate)"), with k1 1.5 and b 0.75. Scores and ties are those of the package bm25s with these settings. That package
needs an index of all words in memory. Here, the queries are known in advance, so two passes over the passages suffice:
the first one counts words, the second one scores a block of passages at a time, by the words of the queries only.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import log

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from pyrite.tables import Texts
from pyrite.words import words

#: Scores and positions of passages.
Found = tuple[NDArray[np.float32], NDArray[np.int64]]

K1, B = 1.5, 0.75

#: Lucene's stopwords. All are ASCII words, so that text in other scripts loses nothing.
_STOPWORDS = frozenset(
    words(
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
        "this to was will with"
    )
)

#: Passages per block, and queries scored at a time. Their scores take at most 32 MiB.
_BLOCK, _QUERIES = 1 << 13, 1 << 9


def tokenize(text: str) -> list[str]:
    """The lower-case words of ``text``, without English stopwords."""
    return [word for word in words(text.lower(), punctuation=False) if word not in _STOPWORDS]


def rank(passages: Texts, queries: Sequence[str], k: int) -> Found:
    """The scores and the positions in ``passages`` of the best ``k`` passages of each query.

    A query has at most as many results as there are passages. Passages with equal scores are in the order of
    ``passages``, so that the result is reproducible. Passages without a word of the query have the score 0.

    Returns:
        Two arrays of shape (queries, min(k, passages)), best first.

    Raises:
        ValueError: there are no passages.
    """
    asked = [tokenize(query) for query in queries]
    number_of = {word: number for number, word in enumerate(dict.fromkeys(word for each in asked for word in each))}
    total = length = 0
    containing: Counter[str] = Counter()
    for block in passages(_BLOCK):
        for tokens in map(tokenize, block):
            total, length = total + 1, length + len(tokens)
            containing.update(number_of.keys() & tokens)
    if not total:
        raise ValueError("BM25 needs at least one passage")
    weights = np.array([log(1 + (total - n + 0.5) / (n + 0.5)) for n in map(containing.__getitem__, number_of)], "f4")
    asked_words = _counts([[number_of[word] for word in each] for each in asked], len(number_of))
    k, start = min(k, total), 0
    best = [(np.empty(0, np.float32), np.empty(0, np.int64))] * len(queries)
    for block in passages(_BLOCK):
        scores = _scores(block, number_of, weights, length / total)
        for first in range(0, len(queries), _QUERIES):
            product = asked_words[first : first + _QUERIES] @ scores  # adds in the order of the query's words
            for row, (values, columns) in enumerate(_by_row(product), first):
                best[row] = _best(best[row], (values, columns + start), k)
        start += len(block)
    results, found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for row, each in enumerate(best):
        results[row], found[row] = _fill(*each, k)
    return results, found


def _counts(lists: Sequence[Sequence[int]], width: int) -> scipy.sparse.csr_array:
    """A matrix with a row for each of ``lists``, and a value of 1 for each of its numbers, in their order."""
    numbers = np.fromiter((number for each in lists for number in each), np.int32)
    ends = np.cumsum([0, *map(len, lists)])
    return scipy.sparse.csr_array((np.ones(len(numbers), np.float32), numbers, ends), shape=(len(lists), width))


def _scores(
    passages: Sequence[str], number_of: Mapping[str, int], weights: NDArray[np.float32], mean_length: float
) -> scipy.sparse.csr_array:
    """The score of each word of the queries (rows) in each of the ``passages`` (columns)."""
    tokens = [tokenize(passage) for passage in passages]
    scores = _counts([[number_of[word] for word in each if word in number_of] for each in tokens], len(number_of))
    scores.sum_duplicates()
    length = np.repeat([len(each) for each in tokens], np.diff(scores.indptr))
    saturated = scores.data / (K1 * (1 - B + B * length / mean_length) + scores.data)
    scores.data = (weights[scores.indices] * saturated).astype(np.float32)
    return scores.T.tocsr()


def _by_row(matrix: scipy.sparse.csr_array) -> Iterator[Found]:
    """The values and their columns in each row."""
    for start, end in pairwise(matrix.indptr.tolist()):
        yield matrix.data[start:end], matrix.indices[start:end].astype(np.int64)


def _best(best: Found, more: Found, k: int) -> Found:
    """The ``k`` highest scores and their positions, best first; ties by position. ``more`` has the higher positions."""
    better = more[0] > (best[0][-1] if len(best[0]) == k else 0)
    if not better.any():
        return best
    scores, positions = np.append(best[0], more[0][better]), np.append(best[1], more[1][better])
    order = np.lexsort((positions, -scores))[:k]
    return scores[order], positions[order]


def _fill(scores: NDArray[np.float32], positions: NDArray[np.int64], k: int) -> Found:
    """``k`` results: those that have a word of the query, then the first other passages."""
    others = np.setdiff1d(np.arange(k), positions)[: k - len(positions)]
    return np.append(scores, np.zeros(len(others), np.float32)), np.append(positions, others)
