"""The controller's process: ``python -m pyrite.controller``, configured by its environment."""

import logging
import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from kubernetes import config
from kubernetes.client.exceptions import ApiException

from pyrite import metrics, metrics_server
from pyrite.controller import health, settings
from pyrite.controller.api import Cluster, error_message
from pyrite.controller.controller import Controller
from pyrite.controller.metrics import Exporter
from pyrite.errors import UserError
from pyrite.store import open_store
from pyrite.store.s3_errors import RetryPolicy

#: Seconds from the end of a turn to the next one.
_PAUSE = 3.0

#: Kinds of errors that may be expected.
_USUAL = ("ApiException", "MaxRetryError", "UserError", "unreadable")

#: With the store: the next turn asks it again, and /healthz does not take a turn that waits for one that is stuck.
STORE_RETRY_POLICY = RetryPolicy(connect_timeout=3, read_timeout=5, max_wait=2, total_timeout=15, boto_attempts=1)

_log = logging.getLogger("pyrite.controller")


def main() -> None:
    """Run the controller until told to stop. Exit code 2: the environment is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    try:
        _serve()
    except UserError as error:
        _log.error("%s", error)
        sys.exit(error.exit_code)


def _serve() -> None:
    stop = threading.Event()

    def end(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    try:
        config.load_incluster_config()
    except config.ConfigException:
        config.load_kube_config()
    places = Path(_needed("PYRITE_SETTINGS")), Path(_needed("PYRITE_JOBS"))
    cluster = Cluster(_needed("PYRITE_NAMESPACE"))
    store = open_store(_needed("PYRITE_STORE"), STORE_RETRY_POLICY)
    loop, exporter = Controller(cluster, store, lambda: settings.load(*places)), Exporter(store)
    settings.load(*places)
    for kind in _USUAL:
        metrics.CONTROLLER_ERRORS.labels(kind)  # 0, not absent: one error in a series that it begins is no growth
    metrics_server.serve_from_env()
    alive = health.serve_from_env()
    _log.info("serving the training runs of namespace %s", cluster.namespace)
    while not stop.is_set():
        start, calls = time.monotonic(), cluster.calls
        try:
            exporter.show(loop.sync(), datetime.now(UTC))
        except Exception as error:  # whatever it is: to end would help no run, and an alert says that turns fail
            metrics.CONTROLLER_ERRORS.labels(type(error).__name__).inc()
            _log.warning("this turn failed, the next one tries again: %s", _first_line(error))
        metrics.CONTROLLER_SYNC.observe(time.monotonic() - start)
        metrics.CONTROLLER_CALLS.inc(cluster.calls - calls)
        alive()
        stop.wait(_PAUSE)
    _log.info("told to stop; what runs goes on, and the next controller takes over")


def _needed(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise UserError(f"{name} is not set; the chart sets it.")
    return value


def _first_line(error: Exception) -> str:
    if isinstance(error, ApiException):
        return f"the API server answers {error.status} {error.reason}: {error_message(error)}"
    return f"{type(error).__name__}: {error}".partition("\n")[0][:500]


if __name__ == "__main__":
    main()
