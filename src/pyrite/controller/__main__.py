"""The controller's process: ``python -m pyrite.controller``, configured by environment variables."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

from kubernetes import config
from kubernetes.client.exceptions import ApiException

from pyrite import metrics, metrics_server
from pyrite.controller import settings
from pyrite.controller.api import Cluster, error_message
from pyrite.controller.controller import Controller
from pyrite.controller.metrics import Exporter
from pyrite.errors import UserError
from pyrite.store import open_store
from pyrite.store.s3_errors import RetryPolicy

#: Seconds from the end of one sync to the start of the next.
_SYNC_INTERVAL = 3.0

#: /healthz fails if no sync has ended for this many seconds; the kubelet then restarts the container.
HEALTHZ_TIMEOUT = 60.0

#: For the store. The next sync retries, so a request gives up long before HEALTHZ_TIMEOUT.
STORE_RETRY_POLICY = RetryPolicy(connect_timeout=3, read_timeout=5, max_wait=2, total_timeout=15, boto_attempts=1)

#: Error types that are exported as 0 before they occur: Prometheus sees no increase in a series that starts at 1.
_EXPECTED_ERRORS = ("ApiException", "MaxRetryError", "UserError", "unreadable_run")

_log = logging.getLogger("pyrite.controller")


def main() -> None:
    """Run the controller until SIGTERM or SIGINT. Exit code 2: an environment variable or a settings file is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    try:
        _run()
    except UserError as error:
        _log.error("%s", error)
        sys.exit(error.exit_code)


def _run() -> None:
    stop = threading.Event()

    def handle_signal(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        stop.set()

    signal.signal(signal.SIGTERM, handle_signal)
    signal.signal(signal.SIGINT, handle_signal)
    try:
        config.load_incluster_config()
    except config.ConfigException:
        config.load_kube_config()
    load = partial(settings.load, Path(_required("PYRITE_SETTINGS")), Path(_required("PYRITE_JOBS")))
    load()  # report invalid settings now
    cluster = Cluster(_required("PYRITE_NAMESPACE"))
    store = open_store(_required("PYRITE_STORE"), STORE_RETRY_POLICY)
    controller, exporter = Controller(cluster, store, load), Exporter(store)
    for error_type in _EXPECTED_ERRORS:
        metrics.CONTROLLER_ERRORS.labels(error_type)
    metrics_server.serve_from_env()
    report_healthy = _serve_healthz()
    _log.info("serving the training runs of namespace %s", cluster.namespace)
    while not stop.is_set():
        start, calls = time.monotonic(), cluster.calls
        try:
            exporter.update(controller.sync(), datetime.now(UTC))
        except Exception as error:  # a restart would not help; an alert fires if every sync fails
            metrics.CONTROLLER_ERRORS.labels(type(error).__name__).inc()
            _log.warning("sync failed, will retry: %s", _describe(error))
        metrics.CONTROLLER_SYNC.observe(time.monotonic() - start)
        metrics.CONTROLLER_CALLS.inc(cluster.calls - calls)
        report_healthy()
        stop.wait(_SYNC_INTERVAL)
    _log.info("stopped by a signal; running Jobs continue, and the next controller takes over")


def _serve_healthz() -> Callable[[], None]:
    """Serve /healthz on the port in PYRITE_HEALTH_PORT, if set. Returns the function to call after each sync."""
    last_sync = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            age = time.monotonic() - last_sync
            code, state = (200, "ok") if age < HEALTHZ_TIMEOUT else (503, "stuck")
            body = f"{state}: the last sync ended {age:.0f} s ago\n"
            if self.path != "/healthz":
                code, body = 404, "not found; try /healthz\n"
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    if port := metrics_server.port_from_env("PYRITE_HEALTH_PORT"):
        server = ThreadingHTTPServer(("", port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def report_healthy() -> None:
        nonlocal last_sync
        last_sync = time.monotonic()

    return report_healthy


def _required(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise UserError(f"{name} is not set; the Helm chart sets it.")
    return value


def _describe(error: Exception) -> str:
    if isinstance(error, ApiException):
        return f"the API server responds {error.status} {error.reason}: {error_message(error)}"
    return f"{type(error).__name__}: {error}".partition("\n")[0][:500]


if __name__ == "__main__":
    main()
