"""A step's progress as metrics, beside whoever else listens."""

from pyrite import metrics
from pyrite.progress import Progress


class Counted:
    """Passes reports on to ``other``, and keeps the metrics of how much is done in step with them."""

    def __init__(self, other: Progress):
        self._other = other
        self._unit = ""

    def begin(self, total: int | None, unit: str) -> None:
        for gauge in (metrics.STEP_UNITS, metrics.STEP_UNITS_DONE):
            gauge.clear()
        self._unit = unit
        metrics.STEP_UNITS_DONE.labels(unit).set(0)
        if total is not None:
            metrics.STEP_UNITS.labels(unit).set(total)
        self._other.begin(total, unit)

    def advance(self, n: int = 1) -> None:
        if self._unit:
            metrics.STEP_UNITS_DONE.labels(self._unit).inc(n)
        self._other.advance(n)

    def message(self, text: str) -> None:
        self._other.message(text)
