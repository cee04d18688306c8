"""The dashboard preview shows each panel with its data or its error."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html import unescape
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from charts.tools import CHART

SCRIPTS = CHART.parents[1] / "scripts"
sys.path.append(str(SCRIPTS))

from preview.queries import Span, expand_variables, step_for, time_variables  # noqa: E402
from preview.units import format_value  # noqa: E402

BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}


def preview(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script without Chromium: screenshots are slow and show nothing that the pages do not contain."""
    programs = out.parent / "bin"
    programs.mkdir()
    for name in ("prometheus", "promtool"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    environment = {"PATH": str(programs), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    command = [sys.executable, str(SCRIPTS / "dashboards_preview.py"), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def sections(page: Path) -> dict[tuple[str, str], str]:
    """Contents of each panel by title and state."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'<section data-state="(\w+)".*?<h3[^>]*><span>(.*?)</span>(.*?)</section>', text, re.DOTALL)
    return {(unescape(title), state): inside for state, title, inside in found}


def test_every_panel_has_data_in_the_demo_run(tmp_path: Path) -> None:
    """The demo run has every metric, label and unit that the panels need."""
    if not shutil.which("prometheus") or not shutil.which("promtool"):
        pytest.skip("prometheus is not on PATH; scripts/install_prometheus.sh installs it")
    out = tmp_path / "out"
    done = preview(out, "--strict")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == str(out / "index.html")
    for name, board in BOARDS.items():
        found = sections(out / f"{name}.html")
        expected = {(panel["title"], "data") for panel in board["panels"] if panel["type"] != "row"}
        assert found.keys() == expected
        assert all(re.search(r"<svg|<b style|<i style", inside) for inside in found.values())
        assert "synthetic data" in (out / f"{name}.html").read_text()


class RejectingPrometheus(BaseHTTPRequestHandler):
    """A Prometheus without data that rejects range queries."""

    def do_GET(self) -> None:
        if "/query_range" in self.path:
            reply: dict[str, object] = {"status": "error", "error": "parse error: unexpected <rate>"}
        elif "/query" in self.path:
            reply = {"status": "success", "data": {"resultType": "vector", "result": []}}
        else:
            reply = {"status": "success", "data": []}
        self.send_response(400 if reply["status"] == "error" else 200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def rejecting_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), RejectingPrometheus)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_rejected_query_is_shown_as_an_error(rejecting_url: str, tmp_path: Path) -> None:
    done = preview(tmp_path / "out", "--url", rejecting_url)
    assert done.returncode == 1
    assert "error: Failed requests per second, by reason: A: parse error: unexpected <rate>" in done.stdout
    found = sections(tmp_path / "out" / "judging.html")
    assert (
        '<p class="error">A: parse error: unexpected &lt;rate&gt;'
        in found["Failed requests per second, by reason", "error"]
    )
    assert '<p class="empty">' in found["Time left", "empty"]
    assert "synthetic data" not in (tmp_path / "out" / "judging.html").read_text()


def test_an_unknown_variable_is_reported(tmp_path: Path) -> None:
    done = preview(tmp_path / "out", "--url", "http://127.0.0.1:1", "--set", "runs=sample")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Unknown variable in --set runs; the dashboards have iteration, namespace, pod, run.\n"


def test_only_complete_variable_names_are_replaced() -> None:
    """$__interval does not match in $__interval_ms, nor $run in $run_id."""
    text = 'x{run="$run", id="$run_id"}[$__rate_interval] ${run} $__interval_ms'
    values = {"run": "r", **time_variables(Span(0, 7200), step=15)}
    assert expand_variables(text, values) == 'x{run="r", id="$run_id"}[60s] r 15000'


@pytest.mark.parametrize(
    ("hours", "width", "step", "rate"), [(2, 400, 20, "60s"), (0.5, 600, 15, "60s"), (24, 400, 300, "315s")]
)
def test_a_rate_covers_at_least_two_scrapes(hours: float, width: int, step: int, rate: str) -> None:
    span = Span(0, 3600 * hours)
    assert step_for(span, width) == step
    assert time_variables(span, step)["__rate_interval"] == rate


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [
        (0.4137, "s", None, "414 ms"),
        (312, "s", None, "5.20 mins"),
        (0, "s", None, "0 s"),
        (0.5149, "percentunit", 0, "51%"),
        (9876.5, "count:/s", None, "9.88K /s"),
        (0.05, "count:/s", None, "0.0500 /s"),
        (16000, "short", None, "16 K"),
        (9.9, "currencyUSD", 2, "$9.90"),
        (0.70912, "none", 3, "0.709"),
        (float("nan"), "s", None, "NaN"),
    ],
)
def test_numbers_are_formatted_like_grafana(value: float, unit: str, decimals: int | None, text: str) -> None:
    assert format_value(value, unit, decimals) == text
