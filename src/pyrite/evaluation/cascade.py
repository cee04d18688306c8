"""A cascade of two judges: which grades of the cheap first judge count, and how often the second contradicts them.

The second judge grades a sample of queries, the pilot. The first judge's expected grades are calibrated on it. A pair
is certain if every decision that mining takes by its grade has nearly the same probability as the second judge's.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pyrite.evaluation.isotonic import IsotonicMap
from pyrite.evaluation.significance import Interval, standard_error

Grades = NDArray[np.int64]
Values = NDArray[np.float64]

#: The grades k for which P(grade >= k) is not always 1.
LEVELS = (2, 3, 4)

_Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class CascadeMap:
    """Maps the first judge's expected grades to the distribution of the second judge's grade.

    ``at_least``: maps to P(grade >= k), for each k of LEVELS.
    """

    at_least: tuple[IsotonicMap, IsotonicMap, IsotonicMap]

    @classmethod
    def fit(cls, expected: Values, grades: Grades) -> Self:
        """Fit the ``expected`` grades of the first judge to the ``grades`` of the second, both of shape (pairs,).

        To each class, one contradicting pair is added at either end, as in the rule of succession. Otherwise the
        probability at the ends would be 0 or 1 after a few pairs.

        Raises:
            ValueError: there is no pair.
        """
        if not len(expected):
            raise ValueError("there is no pair to fit")
        ends = (float(np.min(expected)), float(np.max(expected)))
        maps = (IsotonicMap.fit(np.append(expected, ends), np.append(grades >= k, (True, False))) for k in LEVELS)
        two, three, four = maps
        return cls((two, three, four))

    def __call__(self, expected: Values) -> Values:
        """P(grade >= k) for k of LEVELS, of shape (pairs, 3), not increasing in k."""
        return np.minimum.accumulate(np.stack([each(expected) for each in self.at_least], axis=-1), axis=-1)


def certain(at_least: Values, levels: Iterable[int], tolerance: float) -> NDArray[np.bool_]:
    """Whether P(grade >= k) is at most ``tolerance`` or at least 1 - ``tolerance``, for all k of ``levels``.

    Args:
        at_least: as ``CascadeMap`` returns it.
        levels: the decisions to take: each is whether a grade is at least k, from 2 to 4.
    """
    columns = at_least[:, [LEVELS.index(k) for k in levels]]
    return np.asarray(((columns <= tolerance) | (columns >= 1 - tolerance)).all(axis=-1))


def likely_grades(at_least: Values) -> Grades:
    """The median grade of each distribution. It agrees with every certain decision."""
    return np.asarray(1 + (at_least >= 0.5).sum(axis=-1), dtype=np.int64)


def distributions(at_least: Values) -> Values:
    """The probabilities of the grades 1 to 4, of shape (pairs, 4)."""
    edges = np.ones(len(at_least)), np.zeros(len(at_least))
    return -np.diff(np.column_stack([edges[0], at_least, edges[1]]), axis=-1)


class ErrorRate(NamedTuple):
    """The share of audited pairs in which the second judge contradicts the first; NaN without pairs.

    ``standard_error`` is that of the share, clustered by query. The interval is Wilson's (1927), with the number of
    pairs divided by the design effect if the errors of a query are correlated. So it has a width even without an error.
    """

    pairs: int
    errors: int
    standard_error: float

    @property
    def share(self) -> float:
        return self.errors / self.pairs if self.pairs else float("nan")

    @property
    def interval(self) -> Interval:
        """The 95% interval of the share."""
        if not self.pairs:
            return Interval(float("nan"), float("nan"))
        share, variance = self.share, self.standard_error**2
        size = min(self.pairs, share * (1 - share) / variance if variance else self.pairs)
        center = (share + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
        margin = _Z / (1 + _Z**2 / size) * np.sqrt(share * (1 - share) / size + _Z**2 / (4 * size**2))
        return Interval(max(0.0, float(center - margin)), min(1.0, float(center + margin)))

    def as_json(self) -> dict[str, float | None]:
        """The fields, the share and the interval, with None for NaN."""
        found = {**self._asdict(), "share": self.share, "low": self.interval.low, "high": self.interval.high}
        return {name: None if np.isnan(value) else round(value, 6) for name, value in found.items()}


def error_rate(contradicted: Sequence[bool], queries: Sequence[Hashable]) -> ErrorRate:
    """The error rate of the first judge. ``contradicted`` and ``queries`` have one value per audited pair."""
    count = len(contradicted)
    error = standard_error(np.array(contradicted, dtype=np.float64), queries) if count else 0.0
    return ErrorRate(count, sum(contradicted), error)


def pooled(rates: Sequence[ErrorRate]) -> ErrorRate:
    """The error rate of several audits of different queries together."""
    pairs = sum(rate.pairs for rate in rates)
    variance = sum((rate.pairs * rate.standard_error) ** 2 for rate in rates)
    return ErrorRate(pairs, sum(rate.errors for rate in rates), float(np.sqrt(variance)) / max(1, pairs))
