"""The preview of the dashboards: each panel is on its page, with data or with what is wrong."""

import json
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

from preview.asking import Span, filled, step_for, times  # noqa: E402
from preview.units import shown  # noqa: E402

BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}


def preview(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The script, where no Chromium can be found: pictures take long, and the pages hold all that they show."""
    programs = out.parent / "bin"
    programs.mkdir()
    for name in ("prometheus", "promtool"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    command = [sys.executable, str(SCRIPTS / "dashboards_preview.py"), "--out", str(out), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={"PATH": str(programs)})


def sections(page: Path) -> dict[tuple[str, str], str]:
    """What is inside each panel, by its title and its state."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'<section data-state="(\w+)".*?<h3[^>]*><span>(.*?)</span>(.*?)</section>', text, re.DOTALL)
    return {(unescape(title), state): inside for state, title, inside in found}


def test_every_panel_has_data_in_the_made_up_run(tmp_path: Path) -> None:
    """A metric, a label or a unit that a panel needs and the preview does not know leaves a hole in the page."""
    if not shutil.which("prometheus") or not shutil.which("promtool"):
        pytest.skip("prometheus is not on the PATH; scripts/install_prometheus.sh installs it")
    out = tmp_path / "out"
    done = preview(out, "--strict")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == str(out / "index.html")
    for name, board in BOARDS.items():
        found = sections(out / f"{name}.html")
        wanted = {(panel["title"], "data") for panel in board["panels"] if panel["type"] != "row"}
        assert found.keys() == wanted
        assert all(re.search(r"<svg|<b style|<i style", inside) for inside in found.values())
        assert "numbers are made up" in (out / f"{name}.html").read_text()


class Refusing(BaseHTTPRequestHandler):
    """A Prometheus that has nothing, and takes no query over time."""

    def do_GET(self) -> None:
        if "/query_range" in self.path:
            said: dict[str, object] = {"status": "error", "error": "parse error: unexpected <rate>"}
        elif "/query" in self.path:
            said = {"status": "success", "data": {"resultType": "vector", "result": []}}
        else:
            said = {"status": "success", "data": []}
        self.send_response(400 if said["status"] == "error" else 200)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def refusing() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_query_that_is_refused_does_not_look_like_one_without_data(refusing: str, tmp_path: Path) -> None:
    done = preview(tmp_path / "out", "--url", refusing)
    assert done.returncode == 1
    assert "error: Failed requests per second, by reason: A: parse error: unexpected <rate>" in done.stdout
    found = sections(tmp_path / "out" / "judging.html")
    assert (
        '<p class="error">A: parse error: unexpected &lt;rate&gt;'
        in found["Failed requests per second, by reason", "error"]
    )
    assert '<p class="empty">' in found["Time left", "empty"]
    assert "made up" not in (tmp_path / "out" / "judging.html").read_text()


def test_a_mistake_is_said_in_a_sentence(tmp_path: Path) -> None:
    done = preview(tmp_path / "out", "--url", "http://127.0.0.1:1", "--set", "runs=sample")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "--set runs: the dashboards' variables are iteration, namespace, pod, run.\n"


def test_a_variable_is_replaced_as_a_whole() -> None:
    """$__interval is no beginning of $__interval_ms, nor $run of $run_id."""
    text = 'x{run="$run", id="$run_id"}[$__rate_interval] ${run} $__interval_ms'
    values = {"run": "r", **times(Span(0, 7200), step=15)}
    assert filled(text, values) == 'x{run="r", id="$run_id"}[60s] r 15000'


@pytest.mark.parametrize(
    ("hours", "width", "step", "rate"), [(2, 400, 20, "60s"), (0.5, 600, 15, "60s"), (24, 400, 300, "315s")]
)
def test_a_rate_looks_at_two_scrapes_at_least(hours: float, width: int, step: int, rate: str) -> None:
    span = Span(0, 3600 * hours)
    assert step_for(span, width) == step
    assert times(span, step)["__rate_interval"] == rate


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
def test_a_number_is_written_as_grafana_does(value: float, unit: str, decimals: int | None, text: str) -> None:
    assert shown(value, unit, decimals) == text
