"""Counts of grades over time in a judge step, few enough for the step's manifest."""

from collections.abc import Callable
from datetime import datetime
from itertools import zip_longest
from typing import Any

from pyrite.judges.base import GRADES

#: Maximum number of buckets, however long the step.
MAX_BUCKETS = 60
_FIRST_BUCKET_SECONDS = 1.0
_EMPTY = [0] * len(GRADES)


class Timeline:
    """Counts judged pairs by grade, in buckets of time. When full, it merges neighbours and doubles the width."""

    def __init__(self, started: datetime, clock: Callable[[], float]):
        """``started``: the current time, with a time zone. ``clock`` returns monotonic seconds."""
        self._started, self._clock, self._began = started, clock, clock()
        self._seconds = 0.0
        self._width = _FIRST_BUCKET_SECONDS
        self._buckets: list[list[int]] = []

    def add(self, grade: int) -> None:
        """Count a pair that was judged now."""
        self._seconds = self._clock() - self._began
        while self._seconds >= MAX_BUCKETS * self._width:
            pairs = zip_longest(self._buckets[::2], self._buckets[1::2], fillvalue=_EMPTY)
            self._buckets = [[a + b for a, b in zip(*pair, strict=True)] for pair in pairs]
            self._width *= 2
        index = int(self._seconds / self._width)
        self._buckets += [list(_EMPTY) for _ in range(index + 1 - len(self._buckets))]
        self._buckets[index][grade - 1] += 1

    def as_json(self) -> dict[str, Any]:
        """Start (ISO 8601), bucket width, seconds until the last pair, and the counts of grades 1 to 4 per bucket."""
        return {
            "started": self._started.isoformat(timespec="milliseconds"),
            "bucket_seconds": self._width,
            "seconds": round(self._seconds, 3),
            "grades": self._buckets,
        }
