"""Agreement of a judge with known grades: kappa, rank correlation, AUC, reliability and recalibration.

Grades are integers from 1 to 4; expected grades are real numbers from 1 to 4. The pairs of a query are not independent,
so confidence intervals and cross-validation treat all pairs of a query as one cluster.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from pyrite.evaluation.isotonic import IsotonicMap
from pyrite.evaluation.significance import Interval, cluster_codes, resampled_sums, sums_by_cluster

Grades = NDArray[np.int64]
Values = NDArray[np.float64]

LEVELS = (1, 2, 3, 4)

#: The cut points of rounding an expected grade to the nearest grade.
DEFAULT_CUT_POINTS = (1.5, 2.5, 3.5)

_Z = float(stats.norm.ppf(0.975))
_UNDEFINED = Interval(np.nan, np.nan)
_FOLDS = 5
#: Positions tried for each cut point. They give 45,760 triples, which take milliseconds.
_MAX_POSITIONS = 64
_RESAMPLES = 2000

#: With fewer pairs or queries, cut points fit noise, and the interval of kappa is too narrow for a conclusion.
MIN_PAIRS, MIN_QUERIES = 30, 10


def can_tell(interval: Interval, clusters: Sequence[Hashable]) -> bool:
    """Whether an interval allows a conclusion: it is of enough pairs and clusters, and their variance is not 0."""
    return enough(len(clusters), len(set(clusters))) and interval.low < interval.high


def enough(pairs: int, clusters: int) -> bool:
    """Whether there are at least ``MIN_PAIRS`` pairs and ``MIN_QUERIES`` clusters."""
    return pairs >= MIN_PAIRS and clusters >= MIN_QUERIES


# --- kappa ------------------------------------------------------------------------------------------------------------


def quadratic_kappa(truth: Grades, judged: Grades) -> float:
    """Cohen's kappa with quadratic weights (Cohen, 1968): 1 is perfect agreement, 0 is chance level.

    Both arrays have shape (pairs,). NaN if kappa is undefined: without pairs, or if all grades are the same.
    """
    return float(_kappa(_moments(truth, judged, [0] * len(truth)).sum(axis=0)))


def kappa_interval(truth: Grades, judged: Grades, clusters: Sequence[Hashable], seed: int) -> Interval:
    """95% confidence interval of kappa: percentile bootstrap over clusters. ``clusters`` has the query of each pair."""
    return _percentiles(_kappa(_resampled(_moments(truth, judged, clusters), seed)))


def kappa_difference(
    truth: Grades, a: Grades, b: Grades, clusters: Sequence[Hashable], seed: int
) -> tuple[float, Interval]:
    """Kappa of ``b`` minus kappa of ``a``, two judges of the same pairs, and its interval: paired as kappa_interval."""
    both = np.concatenate([_moments(truth, a, clusters), _moments(truth, b, clusters)], axis=1)
    draws = _resampled(both, seed)
    difference = quadratic_kappa(truth, b) - quadratic_kappa(truth, a)
    return difference, _percentiles(_kappa(draws[:, 6:]) - _kappa(draws[:, :6]))


def mean_interval(values: Values, clusters: Sequence[Hashable], seed: int) -> Interval:
    """95% confidence interval of the mean of ``values``, shape (pairs,): percentile bootstrap over clusters."""
    terms = np.stack([np.ones_like(values), values], axis=-1)
    count, total = _resampled(sums_by_cluster(terms, cluster_codes(clusters, len(values))), seed).T
    return _percentiles(total / count)


def confusion(truth: Grades, judged: Grades) -> list[list[int]]:
    """The confusion matrix: pairs by true grade (rows) and judged grade (columns)."""
    return [[int(np.sum((truth == t) & (judged == j))) for j in LEVELS] for t in LEVELS]


def spearman(a: Values, b: Values) -> float:
    """Spearman's rank correlation; NaN if one array is constant or there are fewer than two pairs."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def _moments(truth: Grades, judged: Grades, clusters: Sequence[Hashable]) -> Values:
    """The sums that kappa is computed from, of shape (clusters, 6): pairs, a, b, a squared, b squared, a times b."""
    a, b = np.asarray(truth, dtype=np.float64), np.asarray(judged, dtype=np.float64)
    terms = np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], axis=-1)
    return sums_by_cluster(terms, cluster_codes(clusters, len(a)))


def _kappa(moments: Any) -> Any:
    """Kappa of shape (...) from moments of shape (..., 6).

    With quadratic weights, kappa is 1 - observed / chance. Observed is the mean of (a_i - b_i)^2, chance the mean of
    (a_i - b_j)^2 over all i and j. Both follow from sums that can be added over clusters.
    """
    n, a, b, aa, bb, ab = np.moveaxis(np.asarray(moments, dtype=np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = aa + bb - 2 * a * b / n
        return np.where(chance > 1e-9, 1 - (aa + bb - 2 * ab) / chance, np.nan)


def _resampled(per_cluster: Values, seed: int) -> Values:
    """Sums over clusters drawn with replacement, of shape (resamples, columns); NaN with fewer than two clusters."""
    if len(per_cluster) < 2:
        return np.full((1, per_cluster.shape[1]), np.nan)
    return resampled_sums(per_cluster, _RESAMPLES, seed)


def _percentiles(values: Values) -> Interval:
    finite = values[np.isfinite(values)]
    if len(finite) < len(values) / 2:
        return _UNDEFINED
    low, high = np.percentile(finite, [2.5, 97.5])
    return Interval(float(low), float(high))


# --- AUC --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Auc:
    """Probability that a relevant pair scores above an irrelevant one (ties count half), with a 95% interval."""

    value: float
    interval: Interval
    relevant: int
    irrelevant: int


def auc(scores: Values, relevant: NDArray[np.bool_], clusters: Sequence[Hashable]) -> Auc:
    """Area under the ROC curve. All arguments have shape (pairs,). NaN without relevant or without irrelevant pairs.

    The variance over clusters is Obuchowski's (Biometrics 53:567, 1997), which equals DeLong's (Biometrics 44:837,
    1988) if each cluster has one pair. The interval is computed on the logit scale, so it stays between 0 and 1. If the
    variance is 0, as with perfect separation, that interval would have no width. Newcombe's interval (Statistics in
    Medicine 25:559, 2006, method 5) is used instead, with each cluster counted as one pair.
    """
    scores, relevant = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
    codes = cluster_codes(clusters, len(relevant))
    m, n = int(relevant.sum()), int((~relevant).sum())
    if m == 0 or n == 0:
        return Auc(float("nan"), _UNDEFINED, m, n)
    placement = _placements(scores, relevant)
    value = float(placement[relevant].mean())
    with_relevant, with_irrelevant = len(set(codes[relevant])), len(set(codes[~relevant]))
    if min(with_relevant, with_irrelevant) >= 2:
        variance = _placement_variance(placement, relevant, codes)
        if variance > 1e-12 and 0 < value < 1:
            half = _Z * np.sqrt(variance) / (value * (1 - value))
            low, high = special.expit(special.logit(value) + np.array([-half, half]))
            return Auc(value, Interval(float(low), float(high)), m, n)
    low = _newcombe_low(value, with_relevant, with_irrelevant)
    high = 1 - _newcombe_low(1 - value, with_relevant, with_irrelevant)
    return Auc(value, Interval(low, high), m, n)


def auc_difference(
    a: Values, b: Values, relevant: NDArray[np.bool_], clusters: Sequence[Hashable]
) -> tuple[float, Interval]:
    """AUC of the scores ``b`` minus that of ``a``, of the same pairs, and its interval.

    The variance is that of ``auc``, for the differences of the two placements (DeLong, 1988). NaN as in ``auc``;
    the interval is undefined with fewer than two clusters of relevant or of irrelevant pairs.
    """
    relevant = np.asarray(relevant, dtype=bool)
    codes = cluster_codes(clusters, len(relevant))
    if relevant.all() or not relevant.any():
        return float("nan"), _UNDEFINED
    placement = _placements(b, relevant) - _placements(a, relevant)
    value = float(placement[relevant].mean())
    if min(len(set(codes[relevant])), len(set(codes[~relevant]))) < 2:
        return value, _UNDEFINED
    half = _Z * float(np.sqrt(max(0.0, _placement_variance(placement, relevant, codes))))
    return value, Interval(value - half, value + half)


def _placements(scores: Values, relevant: NDArray[np.bool_]) -> Values:
    """For each pair, the share of the pairs of the other class that it is ranked correctly against, shape (pairs,)."""
    scores = np.asarray(scores, dtype=np.float64)
    above, below = np.sort(scores[relevant]), np.sort(scores[~relevant])
    placement = np.empty(len(scores))
    placement[relevant] = _share_below(below, scores[relevant])
    placement[~relevant] = 1 - _share_below(above, scores[~relevant])
    return placement


def _placement_variance(placement: Values, relevant: NDArray[np.bool_], codes: NDArray[np.int64]) -> float:
    """Obuchowski's variance of the mean placement. Needs at least two clusters of each class."""
    m, n, size = int(relevant.sum()), int((~relevant).sum()), int(codes.max()) + 1
    value = float(placement[relevant].mean())
    off_relevant = np.bincount(codes[relevant], placement[relevant] - value, size)
    off_irrelevant = np.bincount(codes[~relevant], placement[~relevant] - value, size)
    with_relevant, with_irrelevant = len(set(codes[relevant])), len(set(codes[~relevant]))
    return (
        with_relevant / (with_relevant - 1) * float(off_relevant @ off_relevant) / m**2
        + with_irrelevant / (with_irrelevant - 1) * float(off_irrelevant @ off_irrelevant) / n**2
        + 2 * size / (size - 1) * float(off_relevant @ off_irrelevant) / (m * n)
    )


def _share_below(others: Values, scores: Values) -> Values:
    """For each score, the share of ``others`` (sorted) below it. Ties count half."""
    sides = np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")
    return np.asarray(sides / (2 * len(others)))


def _newcombe_low(value: float, m: int, n: int) -> float:
    """Lower limit of Newcombe's method 5 for an AUC of ``m`` relevant and ``n`` irrelevant pairs."""
    size = (m + n) / 2 - 1

    def equation(limit: float) -> float:
        spread = 1 + size * ((1 - limit) / (2 - limit) + limit / (1 + limit))
        return value - limit - _Z * float(np.sqrt(limit * (1 - limit) * spread / (m * n)))

    # At a limit of exactly 1 the spread is 0, which adds a second, meaningless root.
    top = min(value, 1 - 1e-9)
    return float(optimize.brentq(equation, 0.0, top)) if equation(0.0) * equation(top) < 0 else 0.0


# --- reliability of the expected grade --------------------------------------------------------------------------------


class Bin(NamedTuple):
    """The pairs with an expected grade from ``low`` to ``high``: number, mean expected grade and mean true grade."""

    low: float
    high: float
    pairs: int
    expected: float
    truth: float


def reliability(expected: Values, truth: Grades) -> list[Bin]:
    """The non-empty half-grade bins from 1 to 4. The two means of a bin are similar if the judge is calibrated."""
    edges = np.arange(1.0, 4.01, 0.5)
    bin_of = np.clip(np.searchsorted(edges, expected, "right") - 1, 0, len(edges) - 2)
    bins = []
    for number, (low, high) in enumerate(pairwise(edges)):
        members = bin_of == number
        if members.any():
            means = float(np.mean(expected[members])), float(np.mean(truth[members]))
            bins.append(Bin(float(low), float(high), int(members.sum()), *means))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error in grades (as Naeini et al., 2015): mean distance over bins, weighted by pairs."""
    pairs = sum(b.pairs for b in bins)
    return sum(b.pairs * abs(b.expected - b.truth) for b in bins) / pairs if pairs else float("nan")


# --- recalibration ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recalibration:
    """A map of the judge's values to expected grades with cut points, and their effect on the quadratic kappa.

    Attributes:
        expected: the isotonic map to expected grades, fitted on all pairs.
        cut_points: the best cut points on these expected grades.
        before: kappa of the judge's grades.
        after: cross-validated kappa: each query is graded with a map and cut points that were fitted without it.
        gain: 95% confidence interval of ``after - before``.
    """

    expected: IsotonicMap
    cut_points: tuple[float, float, float]
    before: float
    after: float
    gain: Interval


def apply_cut_points(expected: Values, cut_points: Sequence[float]) -> Grades:
    """The grade of each pair: 1 plus the number of cut points below its expected grade."""
    above = np.asarray(expected)[:, None] > np.asarray(cut_points)[None, :]
    return np.asarray(1 + above.sum(axis=1), dtype=np.int64)


def fit_cut_points(expected: Values, truth: Grades) -> tuple[float, float, float]:
    """The three sorted cut points with the highest quadratic kappa. Ties go to those closest to the defaults.

    The candidates are midpoints between expected grades, at most 64. A cut point at 0.5 or 4.5 means that the grade
    below or above it is never given.
    """
    values = np.unique(expected)
    midpoints = (values[1:] + values[:-1]) / 2
    if len(midpoints) > _MAX_POSITIONS - 2:
        midpoints = midpoints[np.linspace(0, len(midpoints) - 1, _MAX_POSITIONS - 2).round().astype(int)]
    positions = np.concatenate([[0.5], midpoints, [4.5]])
    a = np.asarray(truth, dtype=np.float64)
    above = np.asarray(expected)[None, :] > positions[:, None]
    count, total = above.sum(axis=1).astype(np.float64), above @ a
    triples = np.array(list(combinations_with_replacement(range(len(positions)), 3)))
    n1, n2, n3 = count[triples].T
    # The grade b is 1 plus 1 per cut point below the pair, so b squared is 1 plus 3, 5 and 7 for the three cut points.
    b = len(a) + n1 + n2 + n3
    bb = len(a) + 3 * n1 + 5 * n2 + 7 * n3
    ab = a.sum() + total[triples].sum(axis=1)
    ones = np.ones_like(b)
    kappa = _kappa(np.stack([len(a) * ones, a.sum() * ones, b, a @ a * ones, bb, ab], axis=-1))
    kappa = np.where(np.isfinite(kappa), kappa, -np.inf)
    best = triples[kappa >= kappa.max() - 1e-9]
    closest = best[np.argmin(np.abs(positions[best] - np.array(DEFAULT_CUT_POINTS)).sum(axis=1))]
    first, second, third = (float(position) for position in positions[closest])
    return first, second, third


def recalibrate(
    values: Values, judged: Grades, truth: Grades, clusters: Sequence[Hashable], seed: int
) -> Recalibration | None:
    """Fit and cross-validate an isotonic map and cut points. ``values``: the judge's expected grades, or scores.

    None with fewer than ``MIN_PAIRS`` pairs or ``MIN_QUERIES`` clusters, and if all true grades are equal.
    """
    if not enough(len(truth), len(set(clusters))) or np.ptp(truth) == 0:
        return None
    codes = cluster_codes(clusters, len(truth))
    held_out = np.empty(len(codes), dtype=np.int64)
    for fold in _folds(codes, seed):
        expected, cut_points = _fit(values[~fold], truth[~fold])
        held_out[fold] = apply_cut_points(expected(values[fold]), cut_points)
    expected, cut_points = _fit(values, truth)
    return Recalibration(
        expected=expected,
        cut_points=cut_points,
        before=quadratic_kappa(truth, judged),
        after=quadratic_kappa(truth, held_out),
        gain=kappa_difference(truth, judged, held_out, clusters, seed)[1],
    )


def _fit(values: Values, truth: Grades) -> tuple[IsotonicMap, tuple[float, float, float]]:
    """The isotonic map to expected grades, and the best cut points on them."""
    expected = IsotonicMap.fit(values, truth.astype(np.float64))
    return expected, fit_cut_points(expected(values), truth)


def _folds(codes: NDArray[np.int64], seed: int) -> Iterator[NDArray[np.bool_]]:
    """Masks of the held-out pairs: up to five folds of clusters."""
    clusters = int(codes.max()) + 1
    folds = min(_FOLDS, clusters)
    fold_of = np.random.default_rng(seed).permutation(clusters) % folds
    for fold in range(folds):
        yield fold_of[codes] == fold
