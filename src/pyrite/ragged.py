"""Types of arrays of numbers, and lists of numbers of many owners in two arrays."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]


def ragged(starts: Numbers, lengths: Numbers) -> Numbers:
    """The concatenated ranges that begin at ``starts`` and have ``lengths``."""
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(lengths.sum())


@dataclass(frozen=True)
class Lists:
    """A list of numbers for each owner 0, 1, ...: ``values[starts[owner]:starts[owner + 1]]``."""

    starts: Numbers
    values: Numbers

    @classmethod
    def group(cls, owners: Numbers, values: Numbers, count: int) -> Self:
        """The ``values`` of ``count`` owners, in the given order. ``owners``: of each value."""
        starts = np.append(0, np.cumsum(np.bincount(owners, minlength=count)))
        return cls(starts, values[np.argsort(owners, kind="stable")])

    def __getitem__(self, owner: int) -> Numbers:
        return self.values[self.starts[owner] : self.starts[owner + 1]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Numbers:
        """The length of each list."""
        return np.diff(self.starts)

    def owners(self) -> Numbers:
        """The owner of each value."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, owners: Numbers) -> Self:
        """The lists of ``owners``, in that order."""
        starts = self.starts[owners]
        lengths = self.starts[owners + 1] - starts
        values = self.values[ragged(starts, lengths)]
        return type(self)(np.append(0, np.cumsum(lengths)), values)
