"""Agreement against its definitions, and against scikit-learn."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from pyrite.evaluation import agreement

grades = st.integers(1, 4)
pairs = st.lists(st.tuples(grades, grades), min_size=2, max_size=40)


def columns(rows: list[tuple[int, ...]]) -> list[np.ndarray]:
    return [np.array(column) for column in zip(*rows, strict=True)]


@given(pairs)
def test_kappa_equals_its_definition_and_scikit_learn(rows: list[tuple[int, int]]) -> None:
    truth, judged = columns(rows)
    n = len(rows)
    observed = np.array(agreement.confusion(truth, judged)) / n
    chance = np.outer(observed.sum(axis=1), observed.sum(axis=0))
    weights = np.subtract.outer(np.arange(4), np.arange(4)) ** 2
    kappa = agreement.quadratic_kappa(truth, judged)
    if (weights * chance).sum() < 1e-12:
        assert np.isnan(kappa)
        return
    assert kappa == pytest.approx(1 - (weights * observed).sum() / (weights * chance).sum(), abs=1e-9)
    assert kappa == pytest.approx(cohen_kappa_score(truth, judged, weights="quadratic", labels=[1, 2, 3, 4]), abs=1e-9)


@given(st.lists(st.tuples(st.sampled_from([1.0, 1.5, 2.0, 3.25, 4.0]), st.booleans()), min_size=2, max_size=40))
def test_auc_counts_pairs_and_is_in_its_interval(rows: list[tuple[float, bool]]) -> None:
    scores, relevant = columns(rows)
    assume(0 < relevant.sum() < len(rows))
    found = agreement.auc(scores, relevant, range(len(rows)))
    wins = [(a > b) + (a == b) / 2 for a in scores[relevant] for b in scores[~relevant]]
    assert found.value == pytest.approx(np.mean(wins))
    assert found.value == pytest.approx(roc_auc_score(relevant, scores))
    assert 0 <= found.interval.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.interval.high <= 1
    assert found.interval.high > found.interval.low


def test_interval_by_query_covers_and_by_pair_does_not() -> None:
    """Each query shifts all its relevant pairs equally, so ten pairs carry little more information than one."""
    rng = np.random.default_rng(0)
    queries, each = 20, 10
    relevant = np.tile(np.arange(2 * each) < each, queries)
    clusters = np.repeat(np.arange(queries), 2 * each)
    covered = {"query": 0, "pair": 0}
    for _ in range(300):
        shift = np.repeat(rng.normal(size=queries), 2 * each)
        scores = rng.normal(size=len(clusters)) + relevant * (1 + shift)
        # The difference of a relevant and an irrelevant score is normal with mean 1 and variance 1 + 1 + 1.
        truth = stats.norm.cdf(1 / np.sqrt(3))
        for name, names in (("query", list(clusters)), ("pair", range(len(clusters)))):
            interval = agreement.auc(scores, relevant, names).interval
            covered[name] += interval.low <= truth <= interval.high
    assert covered["query"] > 0.9 * 300
    assert covered["pair"] < 0.8 * 300


@pytest.mark.parametrize("direction", [1, -1])
def test_perfect_separation_has_an_interval_with_width(direction: int) -> None:
    def interval(count: int) -> agreement.Interval:
        scores = direction * np.repeat([0.0, 1.0], count)
        return agreement.auc(scores, np.repeat([False, True], count), list(range(count)) * 2).interval

    few, many = interval(3), interval(30)
    near, far = (few.low, many.low) if direction == 1 else (1 - few.high, 1 - many.high)
    assert 0.3 < near < 0.7 < far < 0.98


def test_a_constant_judge_has_no_ranks_and_a_wide_auc() -> None:
    truth = np.array([1, 2, 3, 4] * 5)
    same = np.full(20, 2.0)
    assert np.isnan(agreement.spearman(same, truth))
    assert agreement.quadratic_kappa(truth, same.astype(int)) == 0
    found = agreement.auc(same, truth >= 3, range(20))
    assert found.value == 0.5
    assert found.interval.low < 0.35
    assert found.interval.high > 0.65


@given(st.lists(st.tuples(st.floats(1, 4), grades), min_size=1, max_size=60))
def test_every_pair_is_in_one_reliability_bin(rows: list[tuple[float, int]]) -> None:
    expected, truth = columns(rows)
    bins = agreement.reliability(expected, truth)
    assert sum(b.pairs for b in bins) == len(rows)
    assert all(b.low - 1e-9 <= b.expected <= b.high + 1e-9 for b in bins)
    assert sum(b.pairs * b.truth for b in bins) == pytest.approx(truth.sum())


@given(st.lists(st.tuples(st.sampled_from([1.0, 1.2, 1.9, 2.4, 3.3, 4.0]), grades), min_size=2, max_size=20))
def test_fitted_cut_points_maximise_kappa(rows: list[tuple[float, int]]) -> None:
    expected, truth = columns(rows)
    values = np.unique(expected)
    positions = [0.5, *(values[1:] + values[:-1]) / 2, 4.5]
    kappas = [
        agreement.quadratic_kappa(truth, agreement.apply_cut_points(expected, cut_points))
        for cut_points in combinations_with_replacement(positions, 3)
    ]
    best = agreement.quadratic_kappa(
        truth, agreement.apply_cut_points(expected, agreement.fit_cut_points(expected, truth))
    )
    if np.isnan(kappas).all():
        return
    assert best == pytest.approx(np.nanmax(kappas), abs=1e-9)


def test_recalibration_corrects_a_bias() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(1, 5, 300)
    timid = 1 + (truth - 1) * 0.4 + rng.normal(0, 0.1, 300)
    judged = agreement.apply_cut_points(timid, agreement.DEFAULT_CUT_POINTS)
    recalibration = agreement.recalibrate(timid, judged, truth, list(np.repeat(np.arange(60), 5)), 0)
    assert recalibration is not None
    assert recalibration.before < 0.6
    assert recalibration.after > 0.9
    assert recalibration.gain.low > 0.3


def test_recalibration_of_noise_does_not_help() -> None:
    fitted, after = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        truth, noise = rng.integers(1, 5, 150), rng.uniform(1, 4, 150)
        judged = agreement.apply_cut_points(noise, agreement.DEFAULT_CUT_POINTS)
        recalibration = agreement.recalibrate(noise, judged, truth, list(np.repeat(np.arange(30), 5)), 0)
        assert recalibration is not None
        expected = recalibration.expected(noise)
        fitted.append(agreement.quadratic_kappa(truth, agreement.apply_cut_points(expected, recalibration.cut_points)))
        after.append(recalibration.after)
    assert np.mean(fitted) > 0.05  # overfitting, which cross-validation removes
    assert np.mean(after) < 0.02


@pytest.mark.parametrize(("pairs", "queries", "enough"), [(30, 10, True), (29, 10, False), (90, 9, False)])
def test_cut_points_need_enough_pairs_and_queries(pairs: int, queries: int, enough: bool) -> None:
    truth = np.arange(pairs) % 4 + 1
    clusters = [number % queries for number in range(pairs)]
    assert (agreement.recalibrate(truth.astype(float), truth, truth, clusters, 0) is not None) == enough


def test_a_single_query_has_no_interval_of_kappa() -> None:
    truth = np.array([1, 4, 2])
    interval = agreement.kappa_interval(truth, truth, ["q"] * 3, 0)
    assert np.isnan([interval.low, interval.high]).all()


def paired_judges(seed: int, gain: float, queries: int = 40) -> tuple[np.ndarray, ...]:
    """Expected grades of two judges that share a query's errors; the second one has less noise of its own by ``gain``.

    Returns:
        Scores of both, whether a pair is relevant, and its query, each of shape (pairs,).
    """
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(queries), 6)
    relevant = rng.random(len(query)) < 0.4
    shared = relevant + rng.normal(0, 1, queries)[query] * 0.7
    return shared + rng.normal(0, 1, len(query)), shared + rng.normal(0, 1 - gain, len(query)), relevant, query


def test_a_difference_of_aucs_is_paired_and_its_interval_covers() -> None:
    a, b, relevant, query = paired_judges(0, 0.5)
    difference, interval = agreement.auc_difference(a, b, relevant, query)
    one, two = (agreement.auc(each, relevant, query) for each in (a, b))
    assert difference == pytest.approx(two.value - one.value)
    assert interval.low < difference < interval.high
    assert interval.high - interval.low < 1.2 * (two.interval.high - two.interval.low), "narrower than of two samples"
    back, mirrored = agreement.auc_difference(b, a, relevant, query)
    assert (back, mirrored.low) == (pytest.approx(-difference), pytest.approx(-interval.high))
    covered = 0
    for seed in range(300):
        _, interval = agreement.auc_difference(*paired_judges(seed, 0.0))
        covered += interval.low <= 0 <= interval.high
    assert 276 <= covered <= 296, "near 95% of 300, for two equally good judges"
    assert np.isnan(agreement.auc_difference(a, b, np.ones(len(a), dtype=bool), query)[0])


def test_a_mean_by_query_has_the_interval_of_its_queries() -> None:
    query = np.repeat(np.arange(30), 10)
    values = np.random.default_rng(0).normal(0.5, 1, 30)[query]  # all pairs of a query are equal
    interval = agreement.mean_interval(values, query, 0)
    assert interval.low < values.mean() < interval.high
    error = np.std(values[::10]) / np.sqrt(30)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert np.isnan(agreement.mean_interval(values[:10], query[:10], 0).low), "one query has no interval"
