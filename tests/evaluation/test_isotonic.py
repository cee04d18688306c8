"""Isotonic regression."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.evaluation.isotonic import IsotonicMap

PAIRS = st.lists(st.tuples(st.integers(0, 20), st.floats(-5, 5)), min_size=1, max_size=40)


def test_violators_are_pooled_by_their_weight():
    fitted = IsotonicMap.fit(np.array([1.0, 2.0, 2.0, 3.0]), np.array([0.0, 3.0, 3.0, 0.0]))
    assert fitted.x == (1.0, 2.0, 3.0)
    assert fitted(np.array([0.0, 1.0, 2.0, 3.0, 9.0])) == pytest.approx([0, 0, 2, 2, 2])


@given(PAIRS)
def test_fit_is_monotone_and_keeps_the_mean(pairs):
    scores, targets = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    values = IsotonicMap.fit(scores, targets)(scores)
    assert (np.diff(values[np.argsort(scores, kind="stable")]) >= -1e-9).all()
    assert values.mean() == pytest.approx(targets.mean(), abs=1e-9)
    assert values.min() >= targets.min() - 1e-9
    assert values.max() <= targets.max() + 1e-9


@pytest.mark.parametrize(("x", "y"), [((), ()), ((1, 1), (0, 1)), ((1, 2), (1, 0)), ((1,), (0, 1)), ((1,), (np.nan,))])
def test_invalid_knots_are_refused(x, y):
    with pytest.raises(ValueError, match="x"):
        IsotonicMap(x, y)
