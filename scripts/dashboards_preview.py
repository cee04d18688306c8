"""Render each dashboard as an HTML page, and as a screenshot if Chromium is installed, to view it without Grafana.

Without --url, a local Prometheus provides synthetic data: two hours of a run.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from preview import demo, local_prometheus, theme
from preview.page import DashboardData, dashboard_page, index_page
from preview.panels import content_size
from preview.queries import PanelData, Prometheus, QueryRejected, Span

from pyrite.errors import UserError

CHART = Path(__file__).resolve().parents[1] / "charts" / "pyrite"
#: End of the synthetic data; fixed, so that previews are comparable.
DEMO_END = datetime(2026, 1, 15, 22, 0).timestamp()

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> int:
    """Return 1 if a query fails or, with --strict, if a panel has no data; 2 for invalid arguments."""
    args = _parser().parse_args()
    try:
        return _preview(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _preview(args: argparse.Namespace) -> int:
    selected = _parse_variables(args.set)
    end = args.at or (time.time() if args.url else DEMO_END)
    span = Span(end - 3600 * args.hours, end)
    found = {path.stem: _load_dashboard(path) for path in sorted((CHART / "dashboards").glob("*.json"))}
    known = {
        variable["name"]
        for board in found.values()
        for variable in board["templating"]["list"]
        if variable["type"] == "query"
    }
    if unknown := selected.keys() - known:
        raise UserError(f"Unknown variable in --set {min(unknown)}; the dashboards have {', '.join(sorted(known))}.")
    with _source(args.url, end) as (url, source):
        boards = {name: _query(board, Prometheus(url), selected, span) for name, board in found.items()}
    source += f" {datetime.fromtimestamp(span.start):%Y-%m-%d %H:%M} to {datetime.fromtimestamp(end):%Y-%m-%d %H:%M}."
    args.out.mkdir(parents=True, exist_ok=True)
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    for name, shown in boards.items():
        page = args.out / f"{name}.html"
        page.write_text(dashboard_page(shown, source, span), encoding="utf-8")
        if browser:
            _screenshot(browser, page, shown.height)
    index = args.out / "index.html"
    index.write_text(index_page(boards, source, bool(browser)), encoding="utf-8")
    for name, shown in boards.items():
        print(_summary(name, shown))
    if not browser:
        print(
            "no screenshots: Chromium is not on PATH (Debian: apt-get install chromium); the pages open in any browser"
        )
    print(index)
    failed = any(shown.errors for shown in boards.values())
    return int(failed or (args.strict and any(shown.empty for shown in boards.values())))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--url", help="URL of a Prometheus with the chart's recording rules, such as http://localhost:9090"
    )
    parser.add_argument("--hours", type=_positive, default=2.0, help="time range in hours (default: 2)")
    parser.add_argument(
        "--at",
        type=_timestamp,
        help="end of the time range, such as 2026-01-15T22:00 (default: now; fixed for synthetic data)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a dashboard variable: namespace, run, iteration or pod; repeatable (default: all)",
    )
    parser.add_argument("--out", type=Path, default=Path("out/dashboards"), help="output folder (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="also return exit code 1 if a panel has no data")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 24 * 366:
        raise argparse.ArgumentTypeError(
            f"{text} is not a number of hours up to one year; pass a number such as 2 or 0.5"
        )
    return value


def _timestamp(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a time; pass one such as 2026-01-15T22:00") from None


def _parse_variables(given: list[str]) -> dict[str, str]:
    invalid = [setting for setting in given if "=" not in setting]
    if invalid:
        raise UserError(f"--set {invalid[0]} is not NAME=VALUE, such as --set run=sample.")
    return dict(setting.split("=", 1) for setting in given)


@contextlib.contextmanager
def _source(url: str | None, end: float) -> Iterator[tuple[str, str]]:
    """Yield the URL of Prometheus and the description of its data."""
    if url:
        yield url, f"From {url}."
        return
    with tempfile.TemporaryDirectory(prefix="pyrite-preview-") as folder:
        span = Span(end - demo.SECONDS, end)
        with local_prometheus.start(Path(folder), demo.lines(end), CHART / "files" / "rules.yaml", span) as local_url:
            yield local_url, "This page shows synthetic data, not a measured run."


def _load_dashboard(path: Path) -> dict[str, Any]:
    """Load a dashboard and number its panels, as Grafana does."""
    board: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for number, panel in enumerate(board["panels"]):
        panel["id"] = number
    return board


def _query(board: dict[str, Any], prometheus: Prometheus, given: dict[str, str], span: Span) -> DashboardData:
    selected = {"datasource": "prometheus"}
    variables = []
    for variable in board["templating"]["list"]:
        if variable["type"] != "query":
            continue
        try:
            values = prometheus.values(variable["query"], selected, span)
        except QueryRejected as error:
            raise UserError(f"{board['title']}: the query of variable {variable['name']} failed: {error}") from None
        # If All is not available, Grafana selects the first value.
        first = variable["allValue"] if variable["includeAll"] else next(iter(values), "")
        selected[variable["name"]] = given.get(variable["name"], first)
        text = "All" if selected[variable["name"]] == variable.get("allValue") else selected[variable["name"]]
        variables.append((variable["label"], text, values))
    data: dict[int, PanelData] = {}
    for panel in board["panels"]:
        if panel["type"] != "row":
            data[panel["id"]] = prometheus.panel(panel, selected, span, content_size(panel)[0])
    return DashboardData(board, data, variables)


def _screenshot(browser: str, page: Path, height: int) -> None:
    """Save a screenshot of the complete page next to it."""
    command = [browser, "--headless", "--disable-gpu", "--hide-scrollbars", f"--window-size={theme.WIDTH},{height}"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")  # Chromium's sandbox does not work for root
    with tempfile.TemporaryDirectory(prefix="pyrite-preview-") as profile:
        screenshot = page.with_suffix(".png").resolve()
        command += [f"--user-data-dir={profile}", f"--screenshot={screenshot}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode or not screenshot.is_file():
        raise UserError(f"{browser} could not take a screenshot of {page}: {done.stderr.strip()[-300:]}")


def _summary(name: str, shown: DashboardData) -> str:
    with_data = len(shown.panels) - len(shown.empty)
    text = f"{name}: {with_data} of {len(shown.panels)} panels have data"
    text += f"; no data in: {'; '.join(shown.empty)}" if shown.empty else ""
    return "\n".join([text, *(f"  error: {error}" for error in shown.errors)])


if __name__ == "__main__":
    sys.exit(main())
