"""The child process of a step: run the step, and send its progress, warnings, metrics and error to the parent."""

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pyrite import metrics
from pyrite.errors import to_pyrite_error
from pyrite.executors.step import Run, run_step
from pyrite.plan import Step
from pyrite.processes import die_with_parent
from pyrite.progress import ProgressEvents
from pyrite.spec import RunSpec
from pyrite.store import open_store

#: How the last line of a failed step's log begins.
FAILED = "failed: "

_METRICS_INTERVAL_SECONDS = 2.0

#: The same warning is sent at most once in this time: an unreachable store causes one every few seconds.
_WARNING_INTERVAL_SECONDS = 60.0

Emit = Callable[[dict[str, Any]], None]


def run_child(
    spec: str, store: str, external: dict[str, str], step: tuple[Any, ...], pipe: Connection, report_metrics: bool
) -> None:
    """The child's main function: run the step, send events to ``pipe``, and exit with 0 or the error's exit code."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to every process; the parent handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run = Run(RunSpec.model_validate_json(spec), open_store(store), external)
    pipe_lock = threading.Lock()

    def emit(event: dict[str, Any]) -> None:
        with pipe_lock:
            try:
                pipe.send_bytes(json.dumps(event).encode())
            except BrokenPipeError:  # the parent was killed: not an error of the step, so no traceback in its log
                os._exit(1)

    with _metrics_events(emit) if report_metrics else nullcontext():
        code = _run_and_report(run, Step(*step), emit)
    pipe.close()
    sys.exit(code)


def _run_and_report(run: Run, step: Step, emit: Emit) -> int:
    """Run ``step``; on an error, send it to the parent, then log it. Returns the exit code."""
    try:
        _redirect_output(run.log(step))
        logging.basicConfig(format="%(asctime)s %(message)s")
        logging.getLogger("pyrite").addHandler(_WarningEvents(emit))
        run_step(run, step, ProgressEvents(emit))
    except Exception as error:
        known = to_pyrite_error(error)
        code, text = (known.exit_code, str(known)) if known else (1, f"{type(error).__name__}: {error}.")
        # Sent first: the log may be on a full disk.
        emit({"event": "error", "text": text, "code": code})
        with suppress(OSError):
            traceback.print_exc()
            print(f"{FAILED}{' '.join(text.split())}", flush=True)
        return code
    return 0


@contextmanager
def _metrics_events(emit: Emit) -> Iterator[None]:
    """Send this process's metrics every few seconds, and a last time at the end."""
    stop = threading.Event()

    def send() -> None:
        families = [(m.name, m.type, m.documentation, [s[:3] for s in m.samples]) for m in metrics.REGISTRY.collect()]
        emit({"event": "metrics", "families": families})

    def send_periodically() -> None:
        while not stop.wait(_METRICS_INTERVAL_SECONDS):
            send()

    thread = threading.Thread(target=send_periodically, daemon=True)
    thread.start()
    yield
    stop.set()
    thread.join()
    send()


class _WarningEvents(logging.Handler):
    """Sends warnings as message events. Warnings that differ only in their arguments count as the same warning."""

    def __init__(self, emit: Emit):
        super().__init__(logging.WARNING)
        self._emit = emit
        self._last_sent: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now - self._last_sent.get(record.msg, -_WARNING_INTERVAL_SECONDS) >= _WARNING_INTERVAL_SECONDS:
            self._last_sent[record.msg] = now
            self._emit({"event": "message", "text": f"warning: {record.getMessage()}"})


def _redirect_output(log: Path) -> None:
    """Append the output of this process to the file ``log``, including that of C libraries."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
