"""Is the difference between two models more than chance? Paired, per query, by resampling.

Smucker, Allan and Carterette ("A comparison of statistical significance tests for information retrieval
evaluation", CIKM 2007) find the permutation test and the bootstrap the right tools for per-query retrieval
metrics.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]

#: Numbers drawn at a time: 16 MiB of float64, which keeps a large test set from filling the memory.
_BATCH = 2 << 20


@dataclass(frozen=True)
class Interval:
    """A two-sided 95% interval. NaN where it is undefined."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """``other`` against ``base`` on the same queries.

    Attributes:
        queries: how many there are.
        base, other: mean values.
        difference: other - base.
        relative: difference / base, a share (0.15 is +15%); NaN where base is 0.
        difference_interval, relative_interval: 95% percentile intervals of the paired bootstrap.
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
        resamples: bootstrap draws and permutations (all 2**queries sign flips where those are fewer).
        seed: decides every draw.

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
    """Ratio of the means, not mean of the ratios: most queries have a base value of 0 or 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return difference.mean(axis=axis) / base.mean(axis=axis)


def _interval(data: tuple[Values, ...], statistic: Any, resamples: int, seed: int) -> Interval:
    """Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)."""
    queries = data[0].size
    # With one query there is nothing to draw from; with a base of 0 somewhere there is no ratio to report.
    if queries < 2:
        return Interval(np.nan, np.nan)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        # Said of every undefined interval, and in the words of another method; NaN already says it.
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
    """Were the models alike, each query's difference could as well have had the other sign."""
    # A query on which both models do alike contributes 0 under either sign; leaving it out changes no
    # statistic and saves most of the work. The sum orders the permutations as the mean does.
    decided = difference[difference != 0]
    if decided.size < 2:
        return 1.0  # both signs of a single difference are equally extreme
    result = stats.permutation_test(
        (decided,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH // decided.size),
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)
