"""Exact nearest-neighbour search over embeddings that are read in blocks, in constant memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
from faiss.contrib.exhaustive_search import knn_ground_truth

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def top_k(queries: Floats, blocks: Iterator[Floats], k: int) -> tuple[Floats, Integers]:
    """The ``k`` vectors with the highest inner product for each query, best first; ties by position.

    Args:
        queries: shape (queries, dims), float32, normalised for cosine similarity.
        blocks: consecutive blocks of the corpus, each of shape (rows, dims), float32.

    Returns:
        scores and positions in the corpus, both of shape (queries, k). If the corpus has fewer than ``k`` vectors,
        the rest is -inf and -1.
    """
    scores, positions = knn_ground_truth(
        np.ascontiguousarray(queries), blocks, k, metric_type=faiss.METRIC_INNER_PRODUCT
    )
    scores = np.where(positions < 0, -np.inf, scores).astype(np.float32)
    order = np.lexsort((positions, -scores), axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)


def read_blocks(files: Sequence[Path], rows: int, keep: npt.NDArray[np.bool_] | None = None) -> Iterator[Floats]:
    """Read the embeddings in ``files`` (.npy, shape (vectors, dims)) in order, in blocks of at most ``rows``.

    Small files are joined into one block. A block overwrites the one before, so memory holds only one. ``keep``, a mask
    over the corpus, excludes vectors; positions then count the included ones only.
    """
    size = min(rows, sum(len(np.load(file, mmap_mode="r", allow_pickle=False)) for file in files))
    block, filled = np.empty((0, 0), dtype=np.float32), 0
    for piece in _pieces(files, rows, keep):
        if not len(block):
            block = np.empty((size, piece.shape[1]), dtype=np.float32)
        if filled + len(piece) > size:
            yield block[:filled]
            filled = 0
        block[filled : filled + len(piece)] = piece
        filled += len(piece)
    if filled:
        yield block[:filled]


def _pieces(files: Sequence[Path], rows: int, keep: npt.NDArray[np.bool_] | None) -> Iterator[Floats]:
    """The included vectors of each file, at most ``rows`` at a time."""
    start = 0
    for file in files:
        stored = np.load(file, mmap_mode="r", allow_pickle=False)
        for first in range(0, len(stored), rows):
            piece = stored[first : first + rows]
            yield piece if keep is None else piece[keep[start + first : start + first + len(piece)]]
        start += len(stored)


def take(files: Sequence[Path], positions: Integers) -> Floats:
    """The vectors at ``positions`` of the corpus in ``files``; shape (positions, dims)."""
    stored = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]
    starts = np.cumsum([0, *(len(part) for part in stored)])
    which = np.searchsorted(starts, positions, side="right") - 1
    return np.stack([stored[w][p - starts[w]] for w, p in zip(which, positions, strict=True)]).astype(np.float32)
