"""When a step judged what: grades by time, in so few numbers that they go into the step's manifest."""

from collections.abc import Callable
from datetime import datetime
from itertools import zip_longest
from typing import Any

from pyrite.judges.base import GRADES

#: A timeline never has more buckets, however long the step takes.
MOST_BUCKETS = 60
_FIRST_BUCKET_SECONDS = 1.0
_EMPTY = [0] * len(GRADES)


class Timeline:
    """Counts judged pairs by grade, in buckets of time. When it is full, neighbours are joined and buckets double."""

    def __init__(self, started: datetime, clock: Callable[[], float]):
        """Begin now, at ``started`` (with its time zone) as a calendar has it; ``clock`` gives seconds and never turns
        back."""
        self._started, self._clock, self._began = started, clock, clock()
        self._seconds = 0.0
        self._width = _FIRST_BUCKET_SECONDS
        self._buckets: list[list[int]] = []

    def add(self, grade: int) -> None:
        """Count a pair that was judged just now."""
        self._seconds = self._clock() - self._began
        while self._seconds >= MOST_BUCKETS * self._width:
            pairs = zip_longest(self._buckets[::2], self._buckets[1::2], fillvalue=_EMPTY)
            self._buckets = [[a + b for a, b in zip(*pair, strict=True)] for pair in pairs]
            self._width *= 2
        at = int(self._seconds / self._width)
        self._buckets += [list(_EMPTY) for _ in range(at + 1 - len(self._buckets))]
        self._buckets[at][grade - 1] += 1

    def as_json(self) -> dict[str, Any]:
        """When it began (ISO 8601), the width of a bucket, seconds until the last pair, and counts of the grades 1 to 4
        in each bucket up to that pair's."""
        return {
            "started": self._started.isoformat(timespec="milliseconds"),
            "bucket_seconds": self._width,
            "seconds": round(self._seconds, 3),
            "grades": self._buckets,
        }
