"""Paired comparison of two models: p-values and confidence intervals, by hand and by their properties."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pyrite.evaluation.significance import Comparison, compare, relative_lower_bound, share_interval, standard_error

Pairs = list[tuple[float, float]]
reciprocal_ranks = st.sampled_from([0.0, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 1.0])
pairs = st.lists(st.tuples(reciprocal_ranks, reciprocal_ranks), min_size=2, max_size=40)


def columns(rows: Pairs) -> tuple[np.ndarray, np.ndarray]:
    return np.array([base for base, _ in rows]), np.array([other for _, other in rows])


def test_p_value_of_equal_differences_by_hand() -> None:
    # Five differences of +1: of the 32 sign flips, only all-plus and all-minus are as extreme. p = 2/32.
    assert compare(np.zeros(5), np.ones(5), 1000, 0).p_value == pytest.approx(2 / 32)


def test_p_value_of_unequal_differences_by_hand() -> None:
    # Differences 3, 2, -1: sums of the eight flips are 6, 4, 2, 0, 0, -2, -4, -6; |sum| >= 4 in four of them.
    assert compare(np.zeros(3), np.array([3.0, 2.0, -1.0]), 1000, 0).p_value == pytest.approx(4 / 8)


def test_interval_agrees_with_the_normal_approximation() -> None:
    generator = np.random.default_rng(7)
    base = generator.uniform(0.3, 0.7, 2000)
    other = base + generator.normal(0.05, 0.2, 2000)
    result = compare(base, other, 10_000, 0)
    error = 1.96 * (other - base).std(ddof=1) / np.sqrt(2000)
    assert result.difference_interval.low == pytest.approx(result.difference - error, abs=5e-4)
    assert result.difference_interval.high == pytest.approx(result.difference + error, abs=5e-4)
    assert result.relative == pytest.approx(result.difference / base.mean())


def test_false_positive_rate_is_about_5_percent() -> None:
    generator = np.random.default_rng(1)
    draws = [generator.choice([0, 0.2, 0.5, 1], (2, 50)) for _ in range(200)]
    significant = sum(compare(base, other, 500, 0).p_value < 0.05 for base, other in draws)
    assert 2 <= significant <= 22  # 10 expected; the limits are within five standard deviations


def test_result_depends_on_the_seed() -> None:
    base, other = np.random.default_rng(3).uniform(size=(2, 60))
    assert compare(base, other, 500, 1) == compare(base, other, 500, 1)
    assert compare(base, other, 500, 1) != compare(base, other, 500, 2)


def test_ten_thousand_resamples_take_under_a_second() -> None:
    base, other = np.random.default_rng(3).uniform(size=(2, 300))
    started = time.process_time()
    compare(base, other, 10_000, 0)
    # A run compares five metrics of four models, which should take 5 s. CPU time, because the machine may be busy.
    assert time.process_time() - started < 1


@pytest.mark.parametrize("size", [1, 2])
def test_too_few_queries_are_not_significant(size: int) -> None:
    result = compare(np.full(size, 0.5), np.full(size, 1.0), 100, 0)
    assert result.p_value >= 0.5
    assert result.relative == pytest.approx(1.0)
    if size == 1:
        assert np.isnan([result.relative_interval.low, result.difference_interval.high]).all()


def test_base_of_zero_has_no_relative_change() -> None:
    result = compare(np.zeros(10), np.ones(10), 100, 0)
    assert np.isnan([result.relative, result.relative_interval.low, result.relative_interval.high]).all()
    assert result.difference_interval.low == result.difference == 1


@pytest.mark.parametrize(("base", "other"), [((), ()), ((1.0,), (1.0, 2.0)), (((1.0,),), ((1.0,),))])
def test_unpaired_values_are_rejected(base: object, other: object) -> None:
    with pytest.raises(ValueError, match="paired"):
        compare(np.array(base), np.array(other), 100, 0)


@given(pairs)
@settings(max_examples=50, deadline=None)
def test_p_value_is_a_probability(rows: Pairs) -> None:
    assert 0 < compare(*columns(rows), 200, 0).p_value <= 1


@given(st.lists(st.tuples(reciprocal_ranks, reciprocal_ranks), min_size=2, max_size=7))
@settings(max_examples=50, deadline=None)
def test_comparison_is_antisymmetric(rows: Pairs) -> None:
    base, other = columns(rows)
    forward, backward = compare(base, other, 200, 0), compare(other, base, 200, 0)
    assert forward.difference == pytest.approx(-backward.difference)
    assert forward.p_value == pytest.approx(backward.p_value)


@given(pairs)
@settings(max_examples=50, deadline=None)
def test_interval_of_equal_differences_has_no_width(rows: Pairs) -> None:
    base, _ = columns(rows)
    result = compare(base, base + 0.25, 200, 0)
    assert result.difference_interval.low == pytest.approx(0.25)
    assert result.difference_interval.high == pytest.approx(0.25)


@given(pairs)
@settings(max_examples=50, deadline=None)
def test_equal_models_do_not_differ(rows: Pairs) -> None:
    base, _ = columns(rows)
    result = compare(base, base, 200, 0)
    assert result.p_value == 1
    assert result.difference == result.difference_interval.low == result.difference_interval.high == 0


def intervals(result: Comparison) -> list[float]:
    pairs = result.difference_interval, result.relative_interval
    return [result.p_value, *(value for pair in pairs for value in (pair.low, pair.high))]


def test_intervals_with_one_query_per_cluster_are_ordinary() -> None:
    base, other = np.random.default_rng(5).choice([0.1, 0.2, 0.5, 1.0], (2, 80))
    ordinary = stats.bootstrap((other - base,), np.mean, n_resamples=10_000, method="percentile", rng=0)
    found = compare(base, other, 10_000, 0, clusters=[f"query {number}" for number in range(80)])
    assert found == compare(base, other, 10_000, 0)
    assert found.clusters == found.queries == 80
    assert found.difference_interval.low == pytest.approx(ordinary.confidence_interval.low, abs=0.005)
    assert found.difference_interval.high == pytest.approx(ordinary.confidence_interval.high, abs=0.005)


@given(pairs, st.integers(2, 4))
@settings(max_examples=50, deadline=None)
def test_duplicated_queries_do_not_narrow_an_interval(rows: Pairs, copies: int) -> None:
    base, other = columns(rows)
    clusters = np.repeat(np.arange(len(rows)), copies).tolist()
    repeated = compare(np.repeat(base, copies), np.repeat(other, copies), 200, 0, clusters)
    single = compare(base, other, 200, 0)
    assert intervals(repeated) == pytest.approx(intervals(single), nan_ok=True)
    assert (repeated.queries, repeated.clusters) == (copies * len(rows), len(rows))


def test_false_positive_rate_holds_if_topics_differ() -> None:
    """Each topic shifts all its queries, which makes tests over single queries find far too many differences."""
    generator, topics = np.random.default_rng(2), np.repeat(np.arange(25), 6)
    found = {"clustered": 0, "single": 0}
    for _ in range(200):
        difference = generator.normal(0, 0.2, 25)[topics] + generator.normal(0, 0.1, 150)
        base = np.full(150, 0.5)
        found["clustered"] += compare(base, base + difference, 500, 0, topics.tolist()).p_value < 0.05
        found["single"] += compare(base, base + difference, 500, 0).p_value < 0.05
    assert 2 <= found["clustered"] <= 22
    assert found["single"] > 50


def test_standard_error_of_clusters_by_hand() -> None:
    # Mean 2. Sums of the deviations: -2 and 2. sqrt(2 / 1 * (4 + 4)) / 4 = 1.
    difference = np.array([1.0, 1.0, 3.0, 3.0])
    assert standard_error(difference, ["a", "a", "b", "b"]) == pytest.approx(1.0)
    assert standard_error(difference) == pytest.approx(difference.std(ddof=1) / 2)
    assert standard_error(difference, ["a"] * 4) == 0


def test_lower_bound_agrees_with_the_normal_approximation() -> None:
    generator = np.random.default_rng(7)
    base = np.full(1000, 0.5)
    other = base + generator.normal(-0.01, 0.1, 1000)
    change = (other - base).mean() / 0.5
    error = (other - base).std(ddof=1) / np.sqrt(1000) / 0.5
    bound = relative_lower_bound(base, other, 0.8, 10_000, 0)
    assert bound == pytest.approx(change + stats.norm.ppf(0.2) * error, abs=3e-4)
    assert relative_lower_bound(base, other, 0.95, 10_000, 0) < bound < change
    assert relative_lower_bound(base, base, 0.8, 100, 0) == 0
    assert relative_lower_bound(np.zeros(3), np.ones(3), 0.8, 100, 0) == 0


def test_clusters_of_other_queries_are_rejected() -> None:
    with pytest.raises(ValueError, match="cluster of each of 3"):
        compare(np.zeros(3), np.ones(3), 100, 0, ["a", "b"])


def test_share_interval_covers_the_share_of_clustered_items() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 3)
    covered = 0
    for _ in range(600):
        shares = rng.beta(4.5, 0.5, 60)  # of each cluster, 0.9 on average
        found = share_interval((rng.uniform(size=180) < shares[clusters]).astype(float), clusters.tolist())
        covered += found.low <= 0.9 <= found.high
    assert 0.92 <= covered / 600 <= 0.98


def test_share_interval_of_equal_values_counts_clusters() -> None:
    same, few, many = (share_interval(np.ones(40), [i % n for i in range(40)]) for n in (40, 4, 20))
    assert few.low < many.low < same.low < 1
    assert few.high == many.high == same.high == 1
    assert share_interval(np.zeros(40), list(range(40))).high == pytest.approx(1 - same.low)
