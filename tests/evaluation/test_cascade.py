"""The calibration of a cascade's first judge, and its error rate."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.evaluation.cascade import CascadeMap, certain, distributions, error_rate, likely_grades, pooled

PAIRS = st.lists(st.tuples(st.floats(1, 4), st.integers(1, 4)), min_size=1, max_size=30)


@given(pairs=PAIRS, tolerance=st.floats(0, 0.49))
def test_calibrated_judgments_are_consistent(pairs: list[tuple[float, int]], tolerance: float) -> None:
    expected, grades = (np.array(column) for column in zip(*pairs, strict=True))
    at_least = CascadeMap.fit(expected, grades)(np.linspace(0, 5, 21))
    probabilities = distributions(at_least)
    assert (probabilities > -1e-9).all()
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert (np.diff(at_least, axis=0) > -1e-9).all(), "a higher grade by the first judge is never a lower one"
    is_certain = certain(at_least, {3}, tolerance)
    relevant = likely_grades(at_least) >= 3
    assert (at_least[is_certain & relevant, 1] >= 1 - tolerance).all()
    assert (at_least[is_certain & ~relevant, 1] <= tolerance).all()


@pytest.mark.parametrize(("pairs", "is_certain"), [(3, False), (8, False), (9, True)])
def test_a_few_pairs_make_nothing_certain(pairs: int, is_certain: bool) -> None:
    """With n pairs that agree, the probability of the contrary is 1 / (n + 1)."""
    expected, grades = np.repeat([1.0, 4.0], pairs), np.repeat([1, 4], pairs)
    fitted = CascadeMap.fit(expected, grades)
    assert certain(fitted(np.array([1.0, 4.0])), {3}, 0.1).tolist() == [is_certain] * 2
    assert not certain(fitted(np.array([2.5])), {3}, 0.1).any()


def test_the_error_rate_has_an_interval_that_knows_clusters() -> None:
    wrong = [True] * 20 + [False] * 80
    single, clustered = (error_rate(wrong, [n // size for n in range(100)]) for size in (1, 10))
    assert (single.errors, single.share) == (20, 0.2)
    assert 0.12 < single.interval.low < 0.14
    assert clustered.interval.low < 0.08, "ten clusters are far fewer than 100 independent pairs"
    assert 0 < error_rate([False] * 10, range(10)).interval.high < 0.3
    assert error_rate([], []).as_json()["share"] is None


def test_pooled_audits_are_those_of_all_queries() -> None:
    wrong, queries = [True, False, False, True] * 50, [n // 2 for n in range(200)]
    both = pooled([error_rate(wrong[:80], queries[:80]), error_rate(wrong[80:], queries[80:])])
    every = error_rate(wrong, queries)
    assert both[:2] == every[:2]
    assert both.standard_error == pytest.approx(every.standard_error, rel=0.03)
