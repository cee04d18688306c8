"""k-means centroids, and the nearest domain."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.registry import centroids
from pyrite.registry.selection import sample_queries


def directions(seed: int, rows: int, towards: int, dims: int = 8) -> centroids.Floats:
    """Vectors near the axis ``towards``, of different lengths."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rows, dims)) * 0.05 + np.eye(dims)[towards]
    return (vectors * rng.uniform(0.5, 3, (rows, 1))).astype(np.float32)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 100), st.booleans())
def test_centroids_are_a_few_unit_vectors(rows: int, k: int, seed: int, repeated: bool) -> None:
    vectors = directions(seed, rows, seed % 8)
    vectors = np.concatenate([vectors] * 3) if repeated else vectors
    found = centroids.fit_centroids(vectors, k, 0)
    assert 1 <= len(found) <= min(k, rows)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.array_equal(centroids.parse(centroids.dump(found)), found)
    assert np.array_equal(found, centroids.fit_centroids(vectors, k, 0)), "deterministic"


def test_each_query_gets_the_domain_of_its_direction() -> None:
    two = np.concatenate([directions(0, 50, 0), directions(1, 50, 1)])  # a domain with two subjects
    fitted = {"b": centroids.fit_centroids(two, 2, 0), "a": centroids.fit_centroids(directions(2, 50, 2), 2, 0)}
    queries = np.concatenate([directions(3, 20, 0), directions(4, 20, 1), directions(5, 20, 2)])
    selected = centroids.nearest_domain(queries, fitted)
    assert selected.domains == ["b"] * 40 + ["a"] * 20
    assert selected.scores.shape == (60, 2)
    assert selected.scores[:, 1][:40].min() > 0.9 > selected.scores[:, 0][:40].max()


def test_equal_scores_give_the_first_domain_by_name() -> None:
    one = centroids.fit_centroids(directions(0, 5, 0), 1, 0)
    assert set(centroids.nearest_domain(directions(1, 5, 3), {"b": one, "a": one}).domains) == {"a"}


def test_long_lists_of_queries_are_sampled_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centroids, "MAX_QUERIES", 5)
    queries = [f"query {number:02}" for number in range(20)]
    drawn = sample_queries(queries, 0)
    assert len(set(drawn)) == 5
    assert drawn == sorted(drawn) == sample_queries(queries, 0) != sample_queries(queries, 1)
    assert sample_queries(queries[:5], 0) == queries[:5]


@pytest.mark.parametrize("array", [np.zeros((0, 3), np.float32), np.ones(3, np.float32), np.ones((2, 2))])
def test_other_arrays_are_not_centroids(array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    with pytest.raises(ValueError, match="float32 vectors"):
        centroids.parse(buffer.getvalue())
