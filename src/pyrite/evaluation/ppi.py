"""Prediction-powered inference: a mean over queries by the judge's grades, corrected by people's grades of a sample.

The metric of a query q must be linear in the gains of its pairs: the sum over its pairs i of c_i g_i, where the
coefficient c_i depends on ranks only. DCG is such a sum, and so is the difference of the DCG of two models. MRR is not.
The judge's gain f_i is known for every pair. In stratum h, people graded n_h of the N_h pairs, drawn at random without
replacement; g_i is known for these. The estimate of the mean over Q queries is

    (1 / Q) [ sum over all i of lambda c_i f_i
              + sum over strata h of (N_h / n_h) times the sum over graded i of c_i (g_i - lambda f_i) ]

The first term is the judge's mean. The second is the Horvitz-Thompson estimate (JASA 47, 1952) of its error: a graded
pair counts as 1 / its inclusion probability, N_h / n_h. So the estimate is unbiased for any fixed lambda, whatever the
judge's bias, and its variance is small if the judge is right about most pairs.

- Prediction-powered inference is the case lambda = 1 (Angelopoulos, Bates, Fannjiang, Jordan, Zrnic, Science 382, 2023,
  arXiv 2301.09633). PPI++ (Angelopoulos, Duchi, Zrnic, arXiv 2311.01453) takes the lambda with the smallest variance;
  0 would ignore the judge.
- There, labelled and unlabelled items are different. Here the graded pairs are some of all pairs, as in two-phase
  sampling: this is the difference estimator of Särndal, Swensson and Wretman (Model Assisted Survey Sampling, 1992,
  chapters 6 and 9).
- Variance: the estimate is a mean of one value per query (``_values``). Their sums over clusters are nearly
  independent, so the cluster-robust standard error covers both the choice of queries and the choice of graded pairs.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pyrite.evaluation.significance import Interval, standard_error

Values = NDArray[np.float64]
Integers = NDArray[np.int64]

#: The fewest pairs to grade in a stratum, unless it has fewer: a variance from two to four is too uncertain.
MIN_PER_STRATUM = 5


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a query and a passage with the judge's gains, and people's gains for a random sample of each stratum.

    Attributes:
        query: the pair's query as a number from 0, shape (pairs,).
        stratum: the pair's stratum as a number from 0, shape (pairs,).
        judged: the judge's gain, shape (pairs,).
        graded: the person's gain, on the same scale; NaN if no person graded the pair. Shape (pairs,).
        clusters: the cluster of each query, one item per query. A query may have no pair.
    """

    query: Integers
    stratum: Integers
    judged: Values
    graded: Values
    clusters: Sequence[Hashable]


@dataclass(frozen=True)
class Estimate:
    """A corrected value with its 95% confidence interval. ``judge_weight``: the lambda that was used."""

    value: float
    interval: Interval
    judge_weight: float


def allocate(sizes: Integers, spread: Values, total: int) -> Integers:
    """The number of pairs to grade in each stratum, so that the variance of the estimate is smallest.

    It is proportional to size times spread (Neyman, JRSS 97, 1934), in whole numbers: after the minimum of every
    stratum, the next pair goes to the stratum with the largest N_h S_h / sqrt(n_h (n_h + 1)) (Wright, The American
    Statistician 66, 2012). A larger total never takes a pair from a stratum.

    Args:
        sizes: number of pairs of each stratum, shape (strata,).
        spread: standard deviation of a pair's contribution in each stratum, up to a common factor, shape (strata,).
        total: number of pairs to grade. It is raised to the sum of the minimums, and lowered to the sum of sizes.
    """
    counts = np.minimum(sizes, MIN_PER_STRATUM)
    while counts.sum() < min(total, sizes.sum()):
        priority = sizes * spread / np.sqrt(np.maximum(counts * (counts + 1), 1))
        counts[np.argmax(np.where(counts < sizes, priority, -1.0))] += 1
    return counts


def is_estimable(pairs: Pairs) -> bool:
    """Whether every stratum has at least two graded pairs, or is completely graded."""
    sizes, graded = _counts(pairs)
    return bool(np.all((graded >= 2) | (graded == sizes)))


def mean(coefficient: Values, pairs: Pairs) -> Estimate:
    """The corrected mean over queries of the sum of coefficient times gain.

    Args:
        coefficient: c of each pair, shape (pairs,).

    Raises:
        ValueError: too few pairs are graded (``is_estimable``).
    """
    values, weight = _values(coefficient, pairs)
    return Estimate(float(values.mean()), _interval(values, float(values.mean()), pairs), weight)


def ratio(numerator: Values, denominator: Values, pairs: Pairs) -> Estimate:
    """The corrected ratio of two means, such as a gain relative to the base model's value.

    The interval is by linearisation (delta method): the value of a query is (a_q - r b_q) / mean b, where a_q and b_q
    are its values in numerator and denominator, and r is the ratio. ``judge_weight`` is the numerator's. All is NaN if
    the denominator is not above 0.

    Args:
        numerator, denominator: coefficients of each pair, shape (pairs,).

    Raises:
        ValueError: as ``mean``.
    """
    (above, weight), (below, _) = _values(numerator, pairs), _values(denominator, pairs)
    if below.mean() <= 0:
        return Estimate(np.nan, Interval(np.nan, np.nan), weight)
    value = float(above.mean() / below.mean())
    return Estimate(value, _interval((above - value * below) / below.mean(), value, pairs), weight)


def _values(coefficient: Values, pairs: Pairs) -> tuple[Values, float]:
    """One value per query, whose mean is the estimate, shape (queries,); and lambda.

    With r_i = c_i (g_i - lambda f_i) and its mean m_h over the graded pairs of stratum h, the value of a query is the
    sum over its pairs of lambda c_i f_i + m_h, and of (N_h / n_h) (r_i - m_h) if the pair is graded. In each stratum
    the last terms sum to 0, so they do not change the estimate, but they carry the variance of m_h (linearisation of
    the stratified mean; Särndal, Swensson and Wretman, 1992, chapter 5).
    """
    judged, graded = coefficient * pairs.judged, coefficient * pairs.graded
    weight = _judge_weight(judged, graded, pairs)
    return _linearised(weight * judged, graded - weight * judged, pairs), weight


def _judge_weight(judged: Values, graded: Values, pairs: Pairs) -> float:
    """The lambda with the smallest variance of the estimate, from 0 to 1.

    Lambda does not change the variance between queries. That of the choice of graded pairs is the sum over strata of
    w_h var_h(c (g - lambda f)) with w_h = N_h^2 / n_h (1 - n_h / N_h). It is smallest at the sum of w_h cov_h(c g, c f)
    over the sum of w_h var_h(c f), which are estimated from the graded pairs. 0 if the judge gives them all one gain.
    """
    sizes, count = _counts(pairs)
    is_graded = np.isfinite(graded)
    judged, graded = np.where(is_graded, judged, 0.0), np.where(is_graded, graded, 0.0)
    scale = sizes**2 / np.maximum(count, 1) * (1 - count / np.maximum(sizes, 1)) / np.maximum(count - 1, 1)

    def covariance(a: Values, b: Values) -> float:
        products, *sums = (np.bincount(pairs.stratum, each, len(sizes)) for each in (a * b, a, b))
        return float(scale @ (products - sums[0] * sums[1] / np.maximum(count, 1)))

    variance = covariance(judged, judged)
    return float(np.clip(covariance(graded, judged) / variance, 0, 1)) if variance > 1e-9 else 0.0


def _linearised(known: Values, residual: Values, pairs: Pairs) -> Values:
    """The values of ``_values`` by query, for a ``known`` term of every pair and the ``residual`` of graded pairs."""
    sizes, graded = _counts(pairs)
    if not is_estimable(pairs):
        raise ValueError(f"need two graded pairs in each stratum, got {graded.tolist()} of {sizes.tolist()}")
    is_graded = np.isfinite(pairs.graded)
    residual = np.where(is_graded, residual, 0.0)
    means = np.bincount(pairs.stratum, residual, len(sizes)) / np.maximum(graded, 1)
    # The factor sqrt(n / (n - 1)) makes the variance of a sample unbiased. A complete stratum is not a sample.
    factor = np.where(graded < sizes, np.sqrt(graded / np.maximum(graded - 1, 1)), 1.0)
    weight = factor * sizes / np.maximum(graded, 1)
    centre = means[pairs.stratum]
    terms = known + centre + np.where(is_graded, weight[pairs.stratum] * (residual - centre), 0.0)
    return np.bincount(pairs.query, terms, len(pairs.clusters)).astype(np.float64)


def _counts(pairs: Pairs) -> tuple[Integers, Integers]:
    """The number of pairs, and of graded pairs, of each stratum."""
    strata = int(pairs.stratum.max(initial=-1)) + 1
    sizes = np.bincount(pairs.stratum, minlength=strata)
    return sizes, np.bincount(pairs.stratum[np.isfinite(pairs.graded)], minlength=strata)


def _interval(values: Values, centre: float, pairs: Pairs) -> Interval:
    """Student's t interval for a mean of ``values``. Undefined with a single cluster, which has no variance."""
    sizes, graded = _counts(pairs)
    clusters = len(set(pairs.clusters))
    if clusters < 2:
        return Interval(np.nan, np.nan)
    sampled = graded < sizes
    freedom = min(clusters - 1, int(np.sum(graded[sampled] - 1)) if sampled.any() else clusters - 1)
    margin = float(stats.t.ppf(0.975, freedom)) * standard_error(values, pairs.clusters)
    return Interval(centre - margin, centre + margin)
