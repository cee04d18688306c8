"""Significance of the difference between two models: paired permutation test and paired bootstrap over clusters.

Smucker, Allan and Carterette ("A comparison of statistical significance tests for information retrieval evaluation",
CIKM 2007) find both methods suitable for per-query retrieval metrics. They assume independent queries. Queries of one
topic are not, so all methods here treat a cluster of queries as one unit, which allows any dependence inside it:

- Bootstrap: clusters are drawn with replacement, each with all its queries (Field and Welsh, "Bootstrapping clustered
  data", JRSS B 69, 2007; Cameron, Gelbach and Miller, "Bootstrap-based improvements for inference with clustered
  errors", Review of Economics and Statistics 90, 2008). With fewer than about 30 clusters the intervals are too narrow.
- Permutation: all differences of a cluster change their sign together.
- Standard error: sums over clusters, as in ``agreement.auc`` (Obuchowski, Biometrics 53:567, 1997).

If each query is a cluster of its own, these are the ordinary methods. Means are over queries, not over clusters.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]

#: Numbers drawn at a time: 16 MiB of float64. This bounds the memory with large test sets.
_BATCH = 2 << 20


@dataclass(frozen=True)
class Interval:
    """A two-sided 95% confidence interval; NaN if it is undefined."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """``other`` compared with ``base`` on the same queries.

    Attributes:
        queries: number of queries.
        clusters: number of clusters of queries.
        base, other: mean values.
        difference: other - base.
        relative: difference / base as a share (0.15 is +15%); NaN if base is 0.
        difference_interval, relative_interval: 95% confidence intervals, percentiles of the paired bootstrap.
        p_value: two-sided paired permutation (sign-flip) test of the difference.
    """

    queries: int
    clusters: int
    base: float
    other: float
    difference: float
    relative: float
    difference_interval: Interval
    relative_interval: Interval
    p_value: float


def compare(
    base: Values, other: Values, resamples: int, seed: int, clusters: Sequence[Hashable] | None = None
) -> Comparison:
    """Compare paired per-query values.

    Args:
        base: one value per query, shape (queries,).
        other: the other model's values for the same queries in the same order, shape (queries,).
        resamples: number of bootstrap resamples and of permutations (all 2**clusters sign flips if those are fewer).
        seed: seed of every random draw.
        clusters: the cluster of each query; None if each query is a cluster of its own.

    Raises:
        ValueError: the arrays are empty or not of the same length.
    """
    base, other = _paired(base, other)
    difference = other - base
    codes = cluster_codes(clusters, base.size)
    totals = sums_by_cluster(np.stack([np.ones_like(base), base, difference], axis=-1), codes)
    undefined = Interval(np.nan, np.nan)
    # A single cluster cannot be resampled.
    absolute, relative = undefined, undefined
    if len(totals) > 1:
        count, base_sum, difference_sum = resampled_sums(totals, resamples, seed).T
        absolute = _percentiles(difference_sum / count)
        # A resample with a base mean of 0 has no ratio, so the interval is undefined.
        relative = _percentiles(difference_sum / base_sum) if base_sum.all() else undefined
    return Comparison(
        queries=base.size,
        clusters=len(totals),
        base=float(base.mean()),
        other=float(other.mean()),
        difference=float(difference.mean()),
        # The ratio of the means. The mean of the ratios is undefined, because many queries have a base value of 0.
        relative=float(difference.mean() / base.mean()) if base.any() else float("nan"),
        difference_interval=absolute,
        relative_interval=relative,
        p_value=_sign_flip(totals[:, 2], resamples, seed),
    )


def relative_lower_bound(
    base: Values,
    other: Values,
    confidence: float,
    resamples: int,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
) -> float:
    """One-sided lower confidence bound of the relative change of the mean, a percentile of the paired bootstrap.

    A change from 0 counts as 0. With a single cluster, the bound is the change itself.

    Args:
        confidence: 0.8 gives the 20th percentile: a change that is truly at the bound is seen above it in 1 of 5 cases.
        base, other, resamples, seed, clusters: as in ``compare``.

    Raises:
        ValueError: as ``compare``.
    """
    base, other = _paired(base, other)
    totals = sums_by_cluster(np.stack([base, other - base], axis=-1), cluster_codes(clusters, base.size))
    draws = resampled_sums(totals, resamples, seed) if len(totals) > 1 else totals
    change = np.divide(draws[:, 1], draws[:, 0], out=np.zeros(len(draws)), where=draws[:, 0] > 1e-12)
    return float(np.quantile(change, 1 - confidence))


def standard_error(difference: Values, clusters: Sequence[Hashable] | None = None) -> float:
    """Standard error of the mean of ``difference``, shape (queries,); 0 with a single cluster, which has no variance.

    With one query per cluster it is the sample standard deviation / sqrt(queries).
    """
    deviations = sums_by_cluster((difference - difference.mean())[:, None], cluster_codes(clusters, difference.size))
    count = len(deviations)
    if count < 2:
        return 0.0
    return float(np.sqrt(count / (count - 1) * np.sum(deviations**2)) / difference.size)


def share_interval(values: Values, clusters: Sequence[Hashable]) -> Interval:
    """95% confidence interval of the mean of ``values`` between 0 and 1, shape (items,).

    Wilson's interval (JASA 22, 1927) with the effective sample size, which has the variance of the clustered mean (Dean
    and Pagano, "Evaluating confidence interval methods for binomial proportions in clustered surveys", Journal of
    Survey Statistics and Methodology 3, 2015). If the estimated variance is 0, as when all values are 1, each cluster
    counts as one item.
    """
    mean, error = float(values.mean()), standard_error(values, clusters)
    size = mean * (1 - mean) / error**2 if error > 0 else float(len(set(clusters)))
    z = float(stats.norm.ppf(0.975))
    centre = (mean + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * float(np.sqrt(mean * (1 - mean) / size + z**2 / (4 * size**2)))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def cluster_codes(clusters: Sequence[Hashable] | None, size: int) -> NDArray[np.int64]:
    """The cluster of each item as a number from 0, of shape (size,). None: each item is a cluster of its own.

    Raises:
        ValueError: ``clusters`` does not have ``size`` items.
    """
    if clusters is None:
        return np.arange(size, dtype=np.int64)
    if len(clusters) != size:
        raise ValueError(f"need the cluster of each of {size} queries, got {len(clusters)}")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)


def sums_by_cluster(terms: Values, codes: NDArray[np.int64]) -> Values:
    """Sums of ``terms``, shape (items, columns), over each cluster, shape (clusters, columns)."""
    sums = np.zeros((int(codes.max(initial=-1)) + 1, terms.shape[1]))
    np.add.at(sums, codes, terms)
    return sums


def resampled_sums(per_cluster: Values, resamples: int, seed: int) -> Values:
    """Sums over clusters drawn with replacement, of shape (resamples, columns)."""
    count = len(per_cluster)
    rng = np.random.default_rng(seed)
    uniform = np.full(count, 1 / count)
    batch = max(1, _BATCH // count)
    sizes = [min(batch, resamples - done) for done in range(0, resamples, batch)]
    return np.concatenate([rng.multinomial(count, uniform, size) @ per_cluster for size in sizes])


def _paired(base: Values, other: Values) -> tuple[Values, Values]:
    base, other = np.asarray(base, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if base.shape != other.shape or base.ndim != 1 or base.size == 0:
        raise ValueError(f"need paired values of at least one query, got shapes {base.shape} and {other.shape}")
    return base, other


def _percentiles(values: Values) -> Interval:
    """Percentile interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)."""
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def _sign_flip(sums: Values, resamples: int, seed: int) -> float:
    """p-value of the permutation test. Under the null hypothesis the sign of each cluster's difference is random."""
    # Sums of 0 contribute nothing under either sign. Leaving them out does not change the statistic and saves most of
    # the work. The sum orders the permutations like the mean.
    nonzero = sums[sums != 0]
    if nonzero.size < 2:
        return 1.0  # both signs of a single difference are equally extreme
    result = stats.permutation_test(
        (nonzero,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH // nonzero.size),
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)
