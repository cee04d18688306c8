"""How a step tells what it is doing. Stages speak to a Progress; who listens (terminal, parent, log) is not theirs."""

import time
from collections.abc import Callable
from typing import Any, Protocol


class Progress(Protocol):
    """Receives what a step reports."""

    def begin(self, total: int | None, unit: str) -> None:
        """Start counting ``unit`` towards ``total`` (None: unknown)."""
        ...

    def advance(self, n: int = 1) -> None:
        """``n`` more are done."""
        ...

    def message(self, text: str) -> None:
        """One line that a person should see."""
        ...


class NullProgress:
    """Listens to nothing."""

    def begin(self, total: int | None, unit: str) -> None:
        del total, unit

    def advance(self, n: int = 1) -> None:
        del n

    def message(self, text: str) -> None:
        del text


class ProgressEvents:
    """Passes each report on as a dict with the key "event"; counts are gathered to at most ten a second."""

    def __init__(self, emit: Callable[[dict[str, Any]], None]):
        self._emit = emit
        self._pending = 0
        self._last = 0.0

    def begin(self, total: int | None, unit: str) -> None:
        self._flush()
        self._emit({"event": "begin", "total": total, "unit": unit})

    def advance(self, n: int = 1) -> None:
        self._pending += n
        if time.monotonic() - self._last >= 0.1:
            self._flush()

    def message(self, text: str) -> None:
        self._flush()
        self._emit({"event": "message", "text": text})

    def _flush(self) -> None:
        if self._pending:
            self._emit({"event": "advance", "n": self._pending})
        self._pending = 0
        self._last = time.monotonic()
