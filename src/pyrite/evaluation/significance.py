"""Significance of the difference between two models: paired permutation test and paired bootstrap over queries.

Smucker, Allan and Carterette ("A comparison of statistical significance tests for information retrieval evaluation",
CIKM 2007) find both methods suitable for per-query retrieval metrics.
"""

import warnings
from dataclasses import dataclass
from typing import Any

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
        base, other: mean values.
        difference: other - base.
        relative: difference / base as a share (0.15 is +15%); NaN if base is 0.
        difference_interval, relative_interval: 95% confidence intervals, percentiles of the paired bootstrap.
        p_value: two-sided paired permutation (sign-flip) test of the difference.
    """

    queries: int
    base: float
    other: float
    difference: float
    relative: float
    difference_interval: Interval
    relative_interval: Interval
    p_value: float


def compare(base: Values, other: Values, resamples: int, seed: int) -> Comparison:
    """Compare paired per-query values.

    Args:
        base: one value per query, shape (queries,).
        other: the other model's values for the same queries in the same order, shape (queries,).
        resamples: number of bootstrap resamples and of permutations (all 2**queries sign flips if those are fewer).
        seed: seed of every random draw.

    Raises:
        ValueError: the arrays are empty or not of the same length.
    """
    base, other = np.asarray(base, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if base.shape != other.shape or base.ndim != 1 or base.size == 0:
        raise ValueError(f"need paired values of at least one query, got shapes {base.shape} and {other.shape}")
    difference = other - base
    return Comparison(
        queries=base.size,
        base=float(base.mean()),
        other=float(other.mean()),
        difference=float(difference.mean()),
        relative=float(_relative(base, difference)) if base.any() else float("nan"),
        difference_interval=_interval((difference,), np.mean, resamples, seed),
        relative_interval=_interval((base, difference), _relative, resamples, seed),
        p_value=_sign_flip(difference, resamples, seed),
    )


def _relative(base: Values, difference: Values, axis: int = -1) -> Any:
    """Ratio of the means. The mean of the ratios is undefined, because many queries have a base value of 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return difference.mean(axis=axis) / base.mean(axis=axis)


def _interval(data: tuple[Values, ...], statistic: Any, resamples: int, seed: int) -> Interval:
    """Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)."""
    queries = data[0].size
    # A single query cannot be resampled. A resample with a base mean of 0 has no ratio, so the interval is undefined.
    if queries < 2:
        return Interval(np.nan, np.nan)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        # scipy's warning about undefined intervals would be shown to users. The NaN is enough.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            data,
            statistic,
            n_resamples=resamples,
            batch=max(1, _BATCH // queries),
            vectorized=True,
            paired=True,
            confidence_level=0.95,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    return Interval(low, high) if np.isfinite([low, high]).all() else Interval(np.nan, np.nan)


def _sign_flip(difference: Values, resamples: int, seed: int) -> float:
    """p-value of the permutation test. Under the null hypothesis the sign of each difference is random."""
    # Differences of 0 contribute nothing under either sign. Leaving them out does not change the statistic and saves
    # most of the work. The sum orders the permutations like the mean.
    nonzero = difference[difference != 0]
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
