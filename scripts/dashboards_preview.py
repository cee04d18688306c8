"""Draw each dashboard with its panels' data as a page, and as a picture where Chromium is, for looking without Grafana.

Without --url the numbers are made up: two hours of a run that is being judged, in a Prometheus of our own.
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

from preview import look, own, story
from preview.asking import Answer, Prometheus, Refused, Span
from preview.drawing import size
from preview.page import Shown, dashboard, index

from pyrite.errors import UserError

CHART = Path(__file__).resolve().parents[1] / "charts" / "pyrite"
#: When the made-up two hours end: a fixed evening, so that two previews can be compared.
MADE_UP_END = datetime(2026, 1, 15, 22, 0).timestamp()

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> int:
    """Exit code 1 where a query has an error, or with --strict where a panel has no data; 2 for a mistake."""
    args = _parser().parse_args()
    try:
        return _preview(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _preview(args: argparse.Namespace) -> int:
    chosen = _chosen(args.set)
    end = args.at or (time.time() if args.url else MADE_UP_END)
    span = Span(end - 3600 * args.hours, end)
    found = {path.stem: _numbered(path) for path in sorted((CHART / "dashboards").glob("*.json"))}
    known = {one["name"] for board in found.values() for one in board["templating"]["list"] if one["type"] == "query"}
    if strange := chosen.keys() - known:
        raise UserError(f"--set {min(strange)}: the dashboards' variables are {', '.join(sorted(known))}.")
    with _source(args.url, end) as (url, source):
        boards = {name: _asked(board, Prometheus(url), chosen, span) for name, board in found.items()}
    source += f" {datetime.fromtimestamp(span.start):%Y-%m-%d %H:%M} to {datetime.fromtimestamp(end):%Y-%m-%d %H:%M}."
    args.out.mkdir(parents=True, exist_ok=True)
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    for name, shown in boards.items():
        page = args.out / f"{name}.html"
        page.write_text(dashboard(shown, source, span), encoding="utf-8")
        if browser:
            _photograph(browser, page, shown.height)
    start = args.out / "index.html"
    start.write_text(index(boards, source, bool(browser)), encoding="utf-8")
    for name, shown in boards.items():
        print(_line(name, shown))
    if not browser:
        print(
            "no pictures: Chromium is not on the PATH (Debian: apt-get install chromium); the pages open in any browser"
        )
    print(start)
    failed = any(shown.errors for shown in boards.values())
    return int(failed or (args.strict and any(shown.empty for shown in boards.values())))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a Prometheus that has our rules, such as http://localhost:9090")
    parser.add_argument("--hours", type=_positive, default=2.0, help="how far back the dashboards look (default: 2)")
    parser.add_argument(
        "--at", type=_moment, help="until when, such as 2026-01-15T22:00 (default: now; where made up, a fixed evening)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable of the dashboards: namespace, run, iteration or pod; again for more (default: all)",
    )
    parser.add_argument("--out", type=Path, default=Path("out/dashboards"), help="folder (default: out/dashboards)")
    parser.add_argument("--strict", action="store_true", help="exit code 1 where a panel has no data, too")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 24 * 366:
        raise argparse.ArgumentTypeError(f"{text} is no number of hours up to a year; give one such as 2 or 0.5")
    return value


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no time; give one such as 2026-01-15T22:00") from None


def _chosen(given: list[str]) -> dict[str, str]:
    wrong = [one for one in given if "=" not in one]
    if wrong:
        raise UserError(f"--set {wrong[0]} is not NAME=VALUE, such as --set run=sample.")
    return dict(one.split("=", 1) for one in given)


@contextlib.contextmanager
def _source(url: str | None, end: float) -> Iterator[tuple[str, str]]:
    """A Prometheus' address, and what the page says of it."""
    if url:
        yield url, f"From {url}."
        return
    with tempfile.TemporaryDirectory(prefix="pyrite-preview-") as folder:
        span = Span(end - story.SECONDS, end)
        with own.prometheus(Path(folder), story.lines(end), CHART / "files" / "rules.yaml", span) as made:
            yield made, "All numbers are made up, to show what the dashboards look like; no run was measured."


def _numbered(path: Path) -> dict[str, Any]:
    """A dashboard whose panels have ids, which Grafana gives them as it loads them."""
    board: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for number, panel in enumerate(board["panels"]):
        panel["id"] = number
    return board


def _asked(board: dict[str, Any], prometheus: Prometheus, given: dict[str, str], span: Span) -> Shown:
    chosen = {"datasource": "prometheus"}
    variables = []
    for one in board["templating"]["list"]:
        if one["type"] != "query":
            continue
        try:
            offered = prometheus.values(one["query"], chosen, span)
        except Refused as error:
            raise UserError(f"{board['title']}: its variable {one['name']} cannot be asked for: {error}") from None
        # Where not all can be shown at once, Grafana begins with the first.
        first = one["allValue"] if one["includeAll"] else next(iter(offered), "")
        chosen[one["name"]] = given.get(one["name"], first)
        text = "All" if chosen[one["name"]] == one.get("allValue") else chosen[one["name"]]
        variables.append((one["label"], text, offered))
    answers: dict[int, Answer] = {}
    for panel in board["panels"]:
        if panel["type"] != "row":
            answers[panel["id"]] = prometheus.panel(panel, chosen, span, size(panel)[0])
    return Shown(board, answers, variables)


def _photograph(browser: str, page: Path, height: int) -> None:
    """Beside the page, a picture of all of it."""
    command = [browser, "--headless", "--disable-gpu", "--hide-scrollbars", f"--window-size={look.WIDTH},{height}"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")  # Chromium's own does not work for root
    with tempfile.TemporaryDirectory(prefix="pyrite-preview-") as profile:
        picture = page.with_suffix(".png").resolve()
        command += [f"--user-data-dir={profile}", f"--screenshot={picture}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode or not picture.is_file():
        raise UserError(f"{browser} took no picture of {page}: {done.stderr.strip()[-300:]}")


def _line(name: str, shown: Shown) -> str:
    full = len(shown.panels) - len(shown.empty)
    text = f"{name}: {full} of {len(shown.panels)} panels have data"
    text += f"; none in: {'; '.join(shown.empty)}" if shown.empty else ""
    return "\n".join([text, *(f"  error: {error}" for error in shown.errors)])


if __name__ == "__main__":
    sys.exit(main())
