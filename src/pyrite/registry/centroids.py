"""The centroids of a domain's queries, and the nearest domain of a query.

Centroids are unit vectors. A query's score for a domain is its cosine with the nearest centroid of the domain.
"""

import io
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2

Floats = npt.NDArray[np.float32]

#: Number of centroids of a domain. `make bench-select` compares others.
CENTROIDS = 64

#: Training queries of which the centroids are computed, at most. They are drawn by the run's seed.
MAX_QUERIES = 10_000

_ITERATIONS = 25


class Selected(NamedTuple):
    """The nearest domain of each query, and the scores of all domains, shape (queries, domains)."""

    domains: list[str]
    scores: Floats


def unit_vectors(vectors: Floats) -> Floats:
    """``vectors`` of length 1, shape (rows, dims). A vector of zeros stays so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def fit_centroids(queries: Floats, k: int, seed: int) -> Floats:
    """At most ``k`` centroids of the embedded ``queries``, of shape (queries, dims) with at least one query.

    k-means with k-means++ (Arthur and Vassilvitskii, SODA 2007) on unit vectors. Clusters without a query are dropped.
    """
    vectors = unit_vectors(queries)
    k = min(k, len(np.unique(vectors, axis=0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about empty clusters
        means, labels = kmeans2(vectors, k, iter=_ITERATIONS, minit="++", rng=np.random.default_rng(seed))
    return unit_vectors(means[np.unique(labels)])


def nearest_domain(queries: Floats, centroids: Mapping[str, Floats]) -> Selected:
    """The domain with the highest score for each of the embedded ``queries``; of equal scores, the first by name.

    Args:
        centroids: those of each domain, at least one domain.
    """
    names, vectors = sorted(centroids), unit_vectors(queries)
    scores = np.stack([(vectors @ centroids[name].T).max(axis=1) for name in names], axis=1)
    return Selected([names[best] for best in scores.argmax(axis=1)], scores)


def dump(centroids: Floats) -> bytes:
    """The content of a .npy file, without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, centroids.astype(np.float32), allow_pickle=False)
    return buffer.getvalue()


def parse(data: bytes) -> Floats:
    """The centroids in a .npy file. Raises ValueError if it does not hold any."""
    found = np.load(io.BytesIO(data), allow_pickle=False)
    if found.dtype != np.float32 or found.ndim != 2 or not found.size or not np.isfinite(found).all():
        raise ValueError("it does not hold float32 vectors")
    return np.asarray(found, dtype=np.float32)
