"""Paired comparison of two models: p-values and confidence intervals, by hand and by their properties."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrite.evaluation.significance import compare

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
