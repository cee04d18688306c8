"""A step's process tells its metrics and its warnings to whoever started it."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from pyrite import metrics

_EVERY_SECONDS = 2.0

#: A warning that comes again sooner is not said again: a store that is away gives one a few seconds.
_QUIET_SECONDS = 60.0


def tell(emit: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
    """Tell this process's metrics every few seconds, as events; what is returned tells them once more and ends it."""
    stop = threading.Event()

    def now() -> None:
        families = [(m.name, m.type, m.documentation, [s[:3] for s in m.samples]) for m in metrics.REGISTRY.collect()]
        emit({"event": "metrics", "families": families})

    def often() -> None:
        while not stop.wait(_EVERY_SECONDS):
            now()

    thread = threading.Thread(target=often, daemon=True)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()
        now()

    return end


class Warnings(logging.Handler):
    """Says warnings, as events; of those that differ in their values alone, one in a while."""

    def __init__(self, send: Callable[[dict[str, Any]], None]):
        super().__init__(logging.WARNING)
        self._send = send
        self._said: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now - self._said.get(record.msg, -_QUIET_SECONDS) >= _QUIET_SECONDS:
            self._said[record.msg] = now
            self._send({"event": "message", "text": f"warning: {record.getMessage()}"})
