"""A step's process tells its metrics to whoever started it."""

import threading
from collections.abc import Callable
from typing import Any

from pyrite import metrics

_EVERY_SECONDS = 2.0


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
