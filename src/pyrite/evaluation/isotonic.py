"""Isotonic regression: the monotone step function that fits values best, by least squares."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class IsotonicMap:
    """A non-decreasing function, linear between its knots and constant outside them.

    Attributes:
        x: increasing positions of the knots, at least one.
        y: non-decreasing values at the knots.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raises ValueError if the knots are not as the attributes require."""
        x, y = np.asarray(self.x, dtype=np.float64), np.asarray(self.y, dtype=np.float64)
        if not len(x) or x.shape != y.shape or not np.isfinite(x).all() or not np.isfinite(y).all():
            raise ValueError("x and y must be finite numbers, equally many and at least one")
        if (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
            raise ValueError("x must increase, and y must not decrease")

    @classmethod
    def fit(cls, scores: Values, targets: Values) -> Self:
        """Fit ``targets`` on ``scores``, both of shape (pairs,), by the pool-adjacent-violators algorithm.

        Equal scores count as one position with the mean of their targets. Raises ValueError without pairs.
        """
        from scipy import optimize  # takes a second, and every command imports this module

        x, inverse, counts = np.unique(np.asarray(scores, np.float64), return_inverse=True, return_counts=True)
        if not len(x):
            raise ValueError("there is no pair to fit")
        means = np.bincount(inverse, np.asarray(targets, np.float64)) / counts
        y = np.asarray(optimize.isotonic_regression(means, weights=counts).x)
        # The knots within a constant stretch change nothing.
        inner = np.zeros(len(x), dtype=bool)
        inner[1:-1] = (y[1:-1] == y[:-2]) & (y[1:-1] == y[2:])
        return cls(tuple(map(float, x[~inner])), tuple(map(float, y[~inner])))

    def __call__(self, scores: Values) -> Values:
        """The values at ``scores``, shape (pairs,)."""
        return np.asarray(np.interp(scores, self.x, self.y))
