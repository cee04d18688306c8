"""Exact nearest-neighbour search over embeddings that are read in blocks, in memory that does not grow with the corpus.

Scores do not depend on how the corpus is divided among processes, because each product of matrices has the vectors of
one tile, and each process has complete tiles.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pyrite.ragged import Mask

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

#: Vectors of one product of matrices.
TILE = 2048

#: Vectors in memory at a time, and queries whose scores with them are: 32 MiB.
_BLOCK, _QUERIES = 8 * TILE, 512


class VectorBlock(NamedTuple):
    """Consecutive vectors of the corpus, of shape (rows, dims), and the position of the first."""

    start: int
    vectors: Floats


class Search:
    """The best vectors of each query among the blocks that were added."""

    def __init__(self, queries: Floats, k: int, device: str = "cpu", keep: Mask | None = None):
        """Start a search.

        Args:
            queries: shape (queries, dims), float32, normalised for cosine similarity.
            k: number of vectors to find for each query.
            keep: mask over the corpus; other vectors are not found. None: all are.
        """
        import torch

        self._k, self._device, self._keep = k, device, keep
        self._queries = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)).to(device)
        # Reused, because new memory of this size costs as much as the product of matrices.
        self._buffer = torch.empty((min(len(queries), _QUERIES), _BLOCK), device=device)
        shape = (len(queries), 0)
        self._scores = torch.empty(shape, dtype=torch.float32, device=device)
        self._positions = torch.empty(shape, dtype=torch.int64, device=device)

    def add(self, block: VectorBlock) -> None:
        """Search a block as ``read_blocks`` gives it."""
        import torch

        if not len(self._queries):
            return
        vectors = torch.from_numpy(block.vectors).to(self._device)
        excluded = None
        if self._keep is not None:
            keep = self._keep[block.start : block.start + len(vectors)]
            excluded = torch.from_numpy(~keep).to(self._device)
        positions = torch.arange(block.start, block.start + len(vectors), device=self._device)
        best = []
        for first in range(0, len(self._queries), _QUERIES):
            part = slice(first, first + _QUERIES)
            queries = self._queries[part]
            scores = self._buffer[: len(queries), : len(vectors)]
            for row in range(0, len(vectors), TILE):
                tile = slice(row, row + TILE)
                torch.mm(queries, vectors[tile].T, out=scores[:, tile])
            if excluded is not None:
                scores.masked_fill_(excluded, -torch.inf)
            found, at = _best(scores, positions.expand(len(queries), -1), self._k)
            both = torch.cat([self._scores[part], found], dim=1), torch.cat([self._positions[part], at], dim=1)
            best.append(_best(*both, self._k))
        self._scores, self._positions = (torch.cat(parts) for parts in zip(*best, strict=True))

    def results(self) -> tuple[Floats, Integers]:
        """Scores and positions of the vectors with the highest inner products, best first; ties by position.

        Both have the shape (queries, k). If fewer than ``k`` vectors were searched, the rest is -inf and -1.
        """
        return best_of([(self._scores.cpu().numpy(), self._positions.cpu().numpy())], self._k)


def _best(scores: "Tensor", positions: "Tensor", k: int) -> "tuple[Tensor, Tensor]":
    """The ``k`` highest scores of each row and their positions; of equal scores, those with the lowest positions."""
    if scores.shape[1] <= k:
        return scores, positions
    found, order = scores.topk(k + 1, dim=1)
    tied = ((found[:, k - 1] == found[:, k]) & found[:, k].isfinite()).nonzero().squeeze(1)
    if len(tied):  # topk may have chosen any of them
        by_position = positions[tied].argsort(dim=1)
        by_score = scores[tied].gather(1, by_position).sort(dim=1, descending=True, stable=True).indices
        order[tied] = by_position.gather(1, by_score[:, : k + 1])
    order = order[:, :k]
    return scores.gather(1, order), positions.gather(1, order)


def best_of(parts: Sequence[tuple[Floats, Integers]], k: int) -> tuple[Floats, Integers]:
    """The best ``k`` of each query among the scores and positions of several parts of the corpus, as by ``results``."""
    scores, positions = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
    positions = np.where(np.isneginf(scores), -1, positions)
    if missing := max(0, k - scores.shape[1]):
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        positions = np.pad(positions, ((0, 0), (0, missing)), constant_values=-1)
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)


def top_k(queries: Floats, blocks: Iterable[VectorBlock], k: int, device: str = "cpu") -> tuple[Floats, Integers]:
    """The results of a search for the ``queries`` in all ``blocks``."""
    search = Search(queries, k, device)
    for block in blocks:
        search.add(block)
    return search.results()


def read_blocks(
    files: Sequence[Path], start: int = 0, on_rows: Callable[[int], None] = lambda _: None
) -> Iterator[VectorBlock]:
    """Read the embeddings in ``files`` (.npy, shape (vectors, dims)), which are consecutive.

    Args:
        start: position in the corpus of the first vector.
        on_rows: called with the number of vectors after each block.
    """
    parts: list[Floats] = []
    rows = 0
    for file in files:
        stored = np.load(file, mmap_mode="r", allow_pickle=False)
        for first in range(0, len(stored), _BLOCK):
            piece = stored[first : first + _BLOCK]
            if rows + len(piece) > _BLOCK:
                yield VectorBlock(start, np.concatenate(parts))
                on_rows(rows)
                start, parts, rows = start + rows, [], 0
            parts.append(piece)
            rows += len(piece)
    if parts:
        yield VectorBlock(start, np.concatenate(parts))
        on_rows(rows)
