"""Start a local Prometheus with given samples and the series of our recording rules."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from preview.queries import SCRAPE_INTERVAL, Span
from pyrite.errors import UserError

_READY_SECONDS = 60.0


@contextmanager
def start(folder: Path, lines: Iterable[str], rules: Path, span: Span) -> Iterator[str]:
    """Start a Prometheus with the samples ``lines`` (OpenMetrics text) and yield its URL.

    Raises:
        UserError: Prometheus is not installed or does not start.
    """
    server, promtool = _program("prometheus"), _program("promtool")
    samples, data = folder / "scraped.txt", folder / "data"
    with samples.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    _run(promtool, "tsdb", "create-blocks-from", "openmetrics", str(samples), str(data))
    with _running(server, folder, data) as url:
        time_range = [f"--start={span.start:.0f}", f"--end={span.end:.0f}", f"--eval-interval={SCRAPE_INTERVAL}s"]
        _run(
            promtool,
            "tsdb",
            "create-blocks-from",
            "rules",
            f"--url={url}",
            *time_range,
            f"--output-dir={data}",
            str(rules),
        )
    # A running server loads new blocks once a minute; a restart loads them immediately.
    with _running(server, folder, data) as url:
        yield url


def _program(name: str) -> str:
    found = shutil.which(name)
    if not found:
        raise UserError(f"{name} is not on PATH; install it with `make real-prometheus`, or pass --url.")
    return found


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise UserError(f"{' '.join(command[:4])} failed: {(done.stdout + done.stderr).strip()[-500:]}")


@contextmanager
def _running(server: str, folder: Path, data: Path) -> Iterator[str]:
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    config = folder / "prometheus.yml"
    config.write_text("{}\n", encoding="utf-8")
    command = [
        server,
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address=127.0.0.1:{port}",
        # Series from a file have no staleness markers, so they would stay visible for 5 minutes after their end.
        f"--query.lookback-delta={2 * SCRAPE_INTERVAL}s",
        "--log.level=error",
    ]
    with (folder / "prometheus.log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait_until_ready(url, process, folder / "prometheus.log")
            yield url
        finally:
            process.terminate()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if requests.get(f"{url}/-/ready", timeout=1).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.05)
    raise UserError(f"Prometheus did not start: {log.read_text(errors='replace')[-500:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
