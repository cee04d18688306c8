"""Smaller embeddings: their values, their sizes, and search in all forms at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.embedding.search import Floats, VectorBlock
from pyrite.embedding.smaller import decode, forms, quantize, ranges_of, search_all, truncations


def normal(rows: int, dims: int, seed: int = 0) -> Floats:
    vectors = np.random.default_rng(seed).normal(size=(rows, dims)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(seed=st.integers(0, 2**16), rows=st.integers(1, 50), dims=st.integers(1, 20), scale=st.floats(1e-3, 1e3))
def test_int8_values_differ_by_one_step_at_most(seed: int, rows: int, dims: int, scale: float) -> None:
    vectors = (scale * np.random.default_rng(seed).normal(size=(rows, dims))).astype(np.float32)
    ranges = ranges_of([VectorBlock(0, vectors[: rows // 2 + 1]), VectorBlock(rows // 2, vectors[rows // 2 :])])
    codes = quantize(vectors, ranges)
    assert codes.dtype == np.int8
    step = (vectors.max(axis=0) - vectors.min(axis=0)) / 255
    error = vectors - decode(codes, ranges)
    assert (error >= -0.01 * step - 1e-6 * scale).all()
    assert (error <= 1.01 * step + 1e-6 * scale).all()


@pytest.mark.parametrize("normalise", [True, False])
def test_each_form_ranks_like_its_definition(normalise: bool) -> None:
    corpus, queries = normal(500, 20) * np.linspace(0.5, 2, 500, dtype=np.float32)[:, None], normal(9, 20, seed=1)
    blocks = [VectorBlock(start, corpus[start : start + 128]) for start in range(0, 500, 128)]
    searched = forms(ranges_of(blocks), [8], normalise=normalise)
    found = search_all(searched, queries, blocks, 40, "cpu")

    first = corpus[:, :8] / (np.linalg.norm(corpus[:, :8], axis=1, keepdims=True) if normalise else 1)
    bits, asked = np.packbits(corpus > 0, axis=1), np.packbits(queries > 0, axis=1)
    hamming = np.unpackbits(asked[:, None] ^ bits[None], axis=2).sum(axis=2, dtype=np.int64)
    steps = (corpus.max(axis=0) - corpus.min(axis=0)) / 255
    rounded = corpus.min(axis=0) + np.floor((corpus - corpus.min(axis=0)) / steps) * steps
    scores = {"float32": queries @ corpus.T, "float32-8": queries[:, :8] @ first.T, "int8": queries @ rounded.T}
    assert set(found) == {*scores, "binary"}
    for name, expected in scores.items():
        best = np.sort(-expected, axis=1)[:, :40]
        assert np.allclose(-np.take_along_axis(expected, found[name], axis=1), best, atol=1e-5), name
    assert (found["binary"] == np.argsort(hamming, axis=1, kind="stable")[:, :40]).all()


def test_sizes_are_bytes_of_a_passage() -> None:
    ranges = ranges_of([VectorBlock(0, normal(3, 20))])
    sizes = {form.name: (form.dims, form.bytes) for form in forms(ranges, [12, 4], normalise=True)}
    assert sizes == {
        "float32": (20, 80), "float32-12": (12, 48), "float32-4": (4, 16), "int8": (20, 20), "binary": (20, 3)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dims", "listed", "expected"),
    [
        (384, None, [256, 128, 64, 32]),
        (256, None, [128, 64, 32]),
        (768, None, [512, 256, 128, 64, 32]),
        (32, None, []),
        (384, [200, 50], [200, 50]),
    ],
)
def test_embeddings_are_truncated_to_powers_of_two(dims: int, listed: list[int] | None, expected: list[int]) -> None:
    assert truncations(dims, listed) == expected
