"""BM25, the keyword search that every embedding model is compared with.

bm25s computes it (Xing Han Lù: "BM25S: Orders of magnitude faster lexical search via eager sparse scoring", 2024), with
its defaults: method lucene (Robertson's BM25 as Lucene implements it), k1 1.5, b 0.75.
"""

from collections.abc import Sequence

import bm25s
import numpy as np
from bm25s.stopwords import STOPWORDS_EN
from numpy.typing import NDArray

from pyrite.words import words

#: All are ASCII words, so that text in other scripts loses nothing.
_STOPWORDS = frozenset(STOPWORDS_EN)


def tokenize(text: str) -> list[str]:
    """The lower-case words of ``text``, without English stopwords."""
    return [word for word in words(text.lower(), punctuation=False) if word not in _STOPWORDS]


def rank(passages: Sequence[str], queries: Sequence[str], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The scores and the positions in ``passages`` of the best ``k`` passages of each query.

    A query has at most as many results as there are passages. Passages with equal scores are in the order of
    ``passages``, so that the result is reproducible; a query without a known word has the first passages, with score 0.

    Returns:
        Two arrays of shape (queries, min(k, passages)), best first.

    Raises:
        ValueError: there are no passages.
    """
    if not passages:
        raise ValueError("BM25 needs at least one passage")
    k = min(k, len(passages))
    model = bm25s.BM25()
    tokens = [tokenize(passage) for passage in passages]
    scores = np.zeros((len(queries), k), dtype=np.float32)
    found = np.tile(np.arange(k, dtype=np.int64), (len(queries), 1))
    if not any(tokens):
        return scores, found
    model.index(tokens, show_progress=False)
    for row, query in enumerate(queries):
        known = [word for word in tokenize(query) if word in model.vocab_dict]
        if known:
            values = model.get_scores(known)
            found[row] = best(values, k)
            scores[row] = values[found[row]]
    return scores, found


def best(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The positions of the ``k`` highest of ``values``, shape (n,) with n >= k, best first; ties by position.

    It does not sort all values: sorting a million would take a tenth of a second per query.
    """
    lowest = np.partition(values, -k)[-k]
    above, equal = np.flatnonzero(values > lowest), np.flatnonzero(values == lowest)
    return np.concatenate([above[np.argsort(-values[above], kind="stable")], equal[: k - len(above)]])
