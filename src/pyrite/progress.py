"""The interface to which a step reports its progress, and two implementations."""

import time
from collections.abc import Callable
from typing import Any, Protocol


class Progress(Protocol):
    """Receives a step's progress."""

    def begin(self, total: int | None, unit: str) -> None:
        """Start counting ``unit`` towards ``total`` (None: unknown)."""
        ...

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more."""
        ...

    def message(self, text: str) -> None:
        """Show one line to the user."""
        ...


class NullProgress:
    """Discards progress."""

    def begin(self, total: int | None, unit: str) -> None:
        del total, unit

    def advance(self, n: int = 1) -> None:
        del n

    def message(self, text: str) -> None:
        del text


class ProgressEvents:
    """Emits progress as dicts with the key "event". Advances are batched to at most ten events a second."""

    def __init__(self, emit: Callable[[dict[str, Any]], None]):
        self._emit = emit
        self._pending = 0
        self._last_flush = 0.0

    def begin(self, total: int | None, unit: str) -> None:
        self._flush()
        self._emit({"event": "begin", "total": total, "unit": unit})

    def advance(self, n: int = 1) -> None:
        self._pending += n
        if time.monotonic() - self._last_flush >= 0.1:
            self._flush()

    def message(self, text: str) -> None:
        self._flush()
        self._emit({"event": "message", "text": text})

    def _flush(self) -> None:
        if self._pending:
            self._emit({"event": "advance", "n": self._pending})
        self._pending = 0
        self._last_flush = time.monotonic()
