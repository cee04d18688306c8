"""How far a judge agrees with known grades: kappa, ranks, AUC, reliability, and cut points that would mend a bias.

Grades run from 1 to 4; an expected grade is any number between. Pairs of one query are not independent of each other,
so every interval, and every cross-validation, is by query ("cluster").
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from pyrite.evaluation.significance import Interval

Grades = NDArray[np.int64]
Values = NDArray[np.float64]

LEVELS = (1, 2, 3, 4)

#: Where an expected grade is rounded to a grade if nobody knows better.
DEFAULT_CUT_POINTS = (1.5, 2.5, 3.5)

_Z = float(stats.norm.ppf(0.975))
_UNDEFINED = Interval(np.nan, np.nan)
_FOLDS = 5
#: As many places for a cut are tried: 45,760 triples, some milliseconds.
_PLACES = 64
_RESAMPLES = 2000


# --- kappa ------------------------------------------------------------------------------------------------------------


def quadratic_kappa(truth: Grades, judged: Grades) -> float:
    """Cohen's kappa with quadratic weights (Cohen, 1968): 1 is agreement, 0 what chance would give.

    Both of shape (pairs,). NaN where it is undefined: no pairs, or one and the same grade everywhere.
    """
    return float(_kappa(_moments(truth, judged, [0] * len(truth)).sum(axis=0)))


def kappa_interval(truth: Grades, judged: Grades, clusters: Sequence[Hashable], seed: int) -> Interval:
    """95% interval of the quadratic kappa: percentile bootstrap over clusters. ``clusters`` names each pair's query."""
    return _percentiles(_kappa(_resampled(_moments(truth, judged, clusters), seed)))


def confusion(truth: Grades, judged: Grades) -> list[list[int]]:
    """Counts of pairs: one row per true grade from 1 to 4, in it one number per judged grade."""
    return [[int(np.sum((truth == t) & (judged == j))) for j in LEVELS] for t in LEVELS]


def spearman(a: Values, b: Values) -> float:
    """Spearman's rank correlation; NaN where one of the two is constant or there are fewer than two pairs."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def _moments(truth: Grades, judged: Grades, clusters: Sequence[Hashable]) -> Values:
    """Sums that kappa is made of, shape (clusters, 6): pairs, a, b, a squared, b squared, a times b."""
    a, b = np.asarray(truth, dtype=np.float64), np.asarray(judged, dtype=np.float64)
    each = np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], axis=-1)
    codes = _codes(clusters)
    sums = np.zeros((int(codes.max(initial=-1)) + 1, 6))
    np.add.at(sums, codes, each)
    return sums


def _kappa(moments: Any) -> Any:
    """Kappa of moments of shape (..., 6), shape (...).

    With quadratic weights kappa is 1 - observed / chance, where observed is the mean of (a_i - b_i)^2 and chance the
    mean of (a_i - b_j)^2 over all i and j; so it needs no table, only sums, which add up over clusters.
    """
    n, a, b, aa, bb, ab = np.moveaxis(np.asarray(moments, dtype=np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = aa + bb - 2 * a * b / n
        return np.where(chance > 1e-9, 1 - (aa + bb - 2 * ab) / chance, np.nan)


def _resampled(per_cluster: Values, seed: int) -> Values:
    """Sums of clusters drawn with replacement, shape (resamples, columns)."""
    count = len(per_cluster)
    if count < 2:
        return np.full((1, per_cluster.shape[1]), np.nan)
    rng = np.random.default_rng(seed)
    even = np.full(count, 1 / count)
    # In pieces, so that memory does not grow with clusters times resamples.
    return np.concatenate([rng.multinomial(count, even, 100) @ per_cluster for _ in range(_RESAMPLES // 100)])


def _percentiles(values: Values) -> Interval:
    known = values[np.isfinite(values)]
    if len(known) < len(values) / 2:
        return _UNDEFINED
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(float(low), float(high))


def _codes(clusters: Sequence[Hashable]) -> NDArray[np.int64]:
    """A number from 0 for each cluster, shape (pairs,)."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)


# --- AUC --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Auc:
    """The chance that a relevant pair scores above an irrelevant one (ties count half), with a 95% interval."""

    value: float
    interval: Interval
    relevant: int
    irrelevant: int


def auc(scores: Values, relevant: NDArray[np.bool_], clusters: Sequence[Hashable]) -> Auc:
    """Area under the ROC curve, all of shape (pairs,). NaN where one of the two kinds is missing.

    Variance over clusters by Obuchowski (Biometrics 53:567, 1997), which is DeLong's (Biometrics 44:837, 1988) where
    each cluster has one pair; the interval is made on the logit scale, so it stays between 0 and 1. Where that variance
    is 0, as with perfect separation, it would claim certainty: there Newcombe's interval (Statistics in Medicine
    25:559, 2006, method 5) is taken, with clusters counted as single pairs.
    """
    scores, relevant, codes = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool), _codes(clusters)
    m, n = int(relevant.sum()), int((~relevant).sum())
    if m == 0 or n == 0:
        return Auc(float("nan"), _UNDEFINED, m, n)
    above, below = np.sort(scores[relevant]), np.sort(scores[~relevant])
    placement = np.empty(len(scores))
    placement[relevant] = _share_below(below, scores[relevant])
    placement[~relevant] = 1 - _share_below(above, scores[~relevant])
    value = float(placement[relevant].mean())
    size = int(codes.max()) + 1
    off_relevant = np.bincount(codes[relevant], placement[relevant] - value, size)
    off_irrelevant = np.bincount(codes[~relevant], placement[~relevant] - value, size)
    with_relevant, with_irrelevant = len(set(codes[relevant])), len(set(codes[~relevant]))
    if min(with_relevant, with_irrelevant) >= 2:
        variance = (
            with_relevant / (with_relevant - 1) * float(off_relevant @ off_relevant) / m**2
            + with_irrelevant / (with_irrelevant - 1) * float(off_irrelevant @ off_irrelevant) / n**2
            + 2 * size / (size - 1) * float(off_relevant @ off_irrelevant) / (m * n)
        )
        if variance > 1e-12 and 0 < value < 1:
            half = _Z * np.sqrt(variance) / (value * (1 - value))
            low, high = special.expit(special.logit(value) + np.array([-half, half]))
            return Auc(value, Interval(float(low), float(high)), m, n)
    low = _newcombe_low(value, with_relevant, with_irrelevant)
    high = 1 - _newcombe_low(1 - value, with_relevant, with_irrelevant)
    return Auc(value, Interval(low, high), m, n)


def _share_below(others: Values, scores: Values) -> Values:
    """For each score the share of ``others`` (sorted) below it, ties half."""
    sides = np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")
    return np.asarray(sides / (2 * len(others)))


def _newcombe_low(value: float, m: int, n: int) -> float:
    """Lower limit of Newcombe's method 5 for an AUC of ``m`` relevant and ``n`` irrelevant pairs."""
    size = (m + n) / 2 - 1

    def off(limit: float) -> float:
        spread = 1 + size * ((1 - limit) / (2 - limit) + limit / (1 + limit))
        return value - limit - _Z * float(np.sqrt(limit * (1 - limit) * spread / (m * n)))

    # At a limit of exactly 1 the spread is 0 and the equation has a second, meaningless root.
    top = min(value, 1 - 1e-9)
    return float(optimize.brentq(off, 0.0, top)) if off(0.0) * off(top) < 0 else 0.0


# --- reliability of the expected grade --------------------------------------------------------------------------------


class Bin(NamedTuple):
    """Pairs whose expected grade is from ``low`` up to ``high``: how many, their mean expected and mean true grade."""

    low: float
    high: float
    pairs: int
    expected: float
    truth: float


def reliability(expected: Values, truth: Grades) -> list[Bin]:
    """Half-grade bins from 1 to 4 that hold a pair: where the judge is calibrated, the two means are alike."""
    edges = np.arange(1.0, 4.01, 0.5)
    place = np.clip(np.searchsorted(edges, expected, "right") - 1, 0, len(edges) - 2)
    bins = []
    for number, (low, high) in enumerate(pairwise(edges)):
        here = place == number
        if here.any():
            means = float(np.mean(expected[here])), float(np.mean(truth[here]))
            bins.append(Bin(float(low), float(high), int(here.sum()), *means))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance of expected from true grade over bins, weighted by pairs, in grades (as Naeini et al., 2015)."""
    pairs = sum(b.pairs for b in bins)
    return sum(b.pairs * abs(b.expected - b.truth) for b in bins) / pairs if pairs else float("nan")


# --- cut points that would mend a bias --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recalibration:
    """Cut points on the expected grade, and what they do for the quadratic kappa.

    ``cuts`` are the best on all pairs. ``before`` is the kappa of the judge's own grades, ``after`` that of grades cut
    at points that were found without the pair's query (cross-validated), ``gain`` the 95% interval of the difference.
    """

    cut_points: tuple[float, float, float]
    before: float
    after: float
    gain: Interval


def apply_cut_points(expected: Values, cuts: Sequence[float]) -> Grades:
    """Grades from 1: one more for each of the ``cuts`` that the expected grade is above."""
    above = np.asarray(expected)[:, None] > np.asarray(cuts)[None, :]
    return np.asarray(1 + above.sum(axis=1), dtype=np.int64)


def fit_cut_points(expected: Values, truth: Grades) -> tuple[float, float, float]:
    """The three cut points, in order, whose grades have the greatest quadratic kappa; of equals the most usual.

    Tried are the places midway between two expected grades, 64 at most; a cut at 0.5 or 4.5 means that the grade below
    or above it is never given.
    """
    seen = np.unique(expected)
    between = (seen[1:] + seen[:-1]) / 2
    if len(between) > _PLACES - 2:
        between = between[np.linspace(0, len(between) - 1, _PLACES - 2).round().astype(int)]
    places = np.concatenate([[0.5], between, [4.5]])
    a = np.asarray(truth, dtype=np.float64)
    above = np.asarray(expected)[None, :] > places[:, None]
    count, total = above.sum(axis=1).astype(np.float64), above @ a
    triples = np.array(list(combinations_with_replacement(range(len(places)), 3)))
    n1, n2, n3 = count[triples].T
    # A pair's grade b is 1 and one more per cut that it is above, so b squared is 1 and then 3, 5, 7 more.
    b = len(a) + n1 + n2 + n3
    bb = len(a) + 3 * n1 + 5 * n2 + 7 * n3
    ab = a.sum() + total[triples].sum(axis=1)
    same = np.ones_like(b)
    kappa = _kappa(np.stack([len(a) * same, a.sum() * same, b, a @ a * same, bb, ab], axis=-1))
    kappa = np.where(np.isfinite(kappa), kappa, -np.inf)
    best = triples[kappa >= kappa.max() - 1e-9]
    usual = best[np.argmin(np.abs(places[best] - np.array(DEFAULT_CUT_POINTS)).sum(axis=1))]
    first, second, third = (float(place) for place in places[usual])
    return first, second, third


def recalibrate(
    expected: Values, judged: Grades, truth: Grades, clusters: Sequence[Hashable], seed: int
) -> Recalibration | None:
    """What cut points would do for this judge; None with fewer than two clusters, where nothing can be held out."""
    codes = _codes(clusters)
    if codes.max(initial=-1) < 1:
        return None
    held_out = np.empty(len(codes), dtype=np.int64)
    for outside in _folds(codes, seed):
        held_out[outside] = apply_cut_points(expected[outside], fit_cut_points(expected[~outside], truth[~outside]))
    both = np.concatenate([_moments(truth, judged, clusters), _moments(truth, held_out, clusters)], axis=1)
    drawn = _resampled(both, seed)
    return Recalibration(
        fit_cut_points(expected, truth),
        quadratic_kappa(truth, judged),
        quadratic_kappa(truth, held_out),
        _percentiles(_kappa(drawn[:, 6:]) - _kappa(drawn[:, :6])),
    )


def _folds(codes: NDArray[np.int64], seed: int) -> Iterator[NDArray[np.bool_]]:
    """Masks of the pairs that are held out: up to five parts of the clusters, each once."""
    clusters = int(codes.max()) + 1
    folds = min(_FOLDS, clusters)
    fold_of = np.random.default_rng(seed).permutation(clusters) % folds
    for fold in range(folds):
        yield fold_of[codes] == fold
