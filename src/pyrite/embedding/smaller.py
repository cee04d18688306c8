"""Smaller forms of embeddings, truncated to fewer dimensions, as int8 or as bits, and exact search in all of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyrite.embedding.search import TILE, Floats, Integers, Search, VectorBlock

Codes = npt.NDArray[np.int8]

#: Names of forms in tables. Truncated float32 embeddings are "float32-<dims>".
FLOAT32, INT8, BINARY = "float32", "int8", "binary"

#: The first ``RESCORED_DEPTH`` passages by binary embeddings, in the order of their float32 scores.
RESCORED, RESCORED_DEPTH = "binary-rescored", 40

#: Truncated embeddings have this many dimensions at least, if the run file lists none.
_MIN_DIMS = 32

Transform = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Form:
    """A form of embeddings, as float32 values whose inner products rank like its scores.

    Attributes:
        name: its name in tables.
        dims: number of dimensions.
        bytes: size of a passage in the index.
        passages, queries: the values of embeddings, shape (texts, dims of the model), in this form.
    """

    name: str
    dims: int
    bytes: int
    passages: Transform
    queries: Transform


class Ranges(NamedTuple):
    """The smallest and the largest value of each dimension, shape (dims,) each."""

    low: Floats
    high: Floats


def ranges_of(blocks: Iterable[VectorBlock]) -> Ranges:
    """The ranges of at least one passage."""
    parts = [(block.vectors.min(axis=0), block.vectors.max(axis=0)) for block in blocks]
    low, high = zip(*parts, strict=True)
    return Ranges(np.min(low, axis=0), np.max(high, axis=0))


def truncations(dims: int, listed: Sequence[int] | None) -> list[int]:
    """The numbers of dimensions to truncate to: those ``listed``, or the powers of two below ``dims`` down to 32."""
    if listed is not None:
        return list(listed)
    return [1 << power for power in range(dims.bit_length(), -1, -1) if _MIN_DIMS <= 1 << power < dims]


def forms(ranges: Ranges, listed: Sequence[int] | None, *, normalise: bool) -> list[Form]:
    """The float32 embeddings, then their smaller forms. Queries stay in float32, except for binary embeddings.

    Args:
        ranges: of the passages, for int8.
        listed: numbers of dimensions to truncate to; None: powers of two.
        normalise: whether embeddings are normalised, so that truncated ones are normalised again.
    """
    dims = len(ranges.low)
    found = [Form(FLOAT32, dims, 4 * dims, _unchanged, _unchanged)]
    for size in truncations(dims, listed):
        truncate = _truncation(size, normalise)
        found.append(Form(f"{FLOAT32}-{size}", size, 4 * size, truncate, truncate))
    found.append(Form(INT8, dims, dims, lambda vectors: decode(quantize(vectors, ranges), ranges), _unchanged))
    found.append(Form(BINARY, dims, -(-dims // 8), signs, signs))
    return found


def search_all(
    searched: Sequence[Form], queries: Floats, blocks: Iterable[VectorBlock], k: int, device: str
) -> dict[str, Integers]:
    """The positions of the best ``k`` passages of each query, shape (queries, k), by the name of the form.

    The ``blocks`` are read once.
    """
    searches = [Search(form.queries(queries), k, device) for form in searched]
    for block in blocks:
        for form, search in zip(searched, searches, strict=True):
            search.add(VectorBlock(block.start, _in_tiles(form.passages, block.vectors)))
    return {form.name: search.results()[1] for form, search in zip(searched, searches, strict=True)}


def _in_tiles(transform: Transform, vectors: Floats) -> Floats:
    """``transform(vectors)``, computed a tile at a time: its intermediate results then fit into a processor's cache."""
    return np.concatenate([transform(vectors[row : row + TILE]) for row in range(0, len(vectors), TILE)])


def quantize(vectors: Floats, ranges: Ranges) -> Codes:
    """The int8 codes of sentence-transformers: the range of each dimension is divided into 255 equal steps."""
    from sentence_transformers import quantize_embeddings

    codes: Codes = quantize_embeddings(vectors, "int8", ranges=np.stack(ranges))
    return codes


def decode(codes: Codes, ranges: Ranges) -> Floats:
    """The lower ends of the steps of int8 codes. Their centres would give the same ranking."""
    values: Floats = ranges.low + (codes.astype(np.float32) + np.float32(128)) * (
        (ranges.high - ranges.low) / np.float32(255)
    )
    return values


def signs(vectors: Floats) -> Floats:
    """1 for each value above 0, otherwise -1. Their inner product is dims - 2 * Hamming distance."""
    return np.where(vectors > 0, np.float32(1), np.float32(-1))


def _unchanged(vectors: Floats) -> Floats:
    return vectors


def _truncation(dims: int, normalise: bool) -> Transform:
    def truncate(vectors: Floats) -> Floats:
        first = np.ascontiguousarray(vectors[:, :dims])
        if normalise:
            first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), np.float32(1e-12))
        return first

    return truncate
