"""A real Prometheus of the tests, and what it is asked: whether dashboards and rules find what they ask for."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.test_dashboards import BOARDS, RULES, panels, queries
from real.vllm import free_port

Object = dict[str, Any]


class Prometheus:
    """``get`` brings the JSON of a path of its HTTP API."""

    def __init__(self, get: Callable[[str], Any]):
        self._get = get

    def _ask(self, path: str, **words: Any) -> Any:
        answer = self._get(f"/api/v1/{path}?{urllib.parse.urlencode(words)}")
        assert answer["status"] == "success", answer
        return answer["data"]

    def now(self, expr: str) -> list[Object]:
        """The series that ``expr`` gives at this moment."""
        return list(self._ask("query", query=expr)["result"])

    def ever(self, expr: str, start: float) -> list[Object]:
        """The series that ``expr`` gave since ``start``, at some moment."""
        step = max(1, round((time.time() - start) / 500))
        return list(self._ask("query_range", query=expr, start=start, end=time.time(), step=step)["result"])

    def scraped(self) -> set[str]:
        """Names of all metrics that living targets tell of, those without a series yet too; see ``plain``."""
        return {plain(entry["metric"]) for entry in self._ask("targets/metadata")}

    def firing(self, start: float) -> set[str]:
        """Names of the alerts that fired since ``start``."""
        found = self.ever('ALERTS{alertstate="firing"}', start)
        return {series["metric"]["alertname"] for series in found}

    def until(self, what: str, expr: str, seconds: float) -> None:
        """Wait until ``expr`` gives a series."""
        deadline = time.monotonic() + seconds
        while not self.now(expr):
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
            time.sleep(0.5)


def program() -> str:
    """Where Prometheus is; the test is skipped where it is not."""
    found = shutil.which("prometheus")
    if not found:
        pytest.skip("no Prometheus here: `make real-prometheus` installs it")
    return found


@contextmanager
def running(folder: Path, targets: Object, rules: Object) -> Iterator[Prometheus]:
    """A Prometheus that scrapes ``targets`` (labels by address) every second and goes by ``rules``."""
    port = free_port()
    jobs = [
        {"job_name": address, "static_configs": [{"targets": [address], "labels": labels}]}
        for address, labels in targets.items()
    ]
    described = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(described))
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    words = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [program(), *words, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield Prometheus(lambda path: _read(f"http://127.0.0.1:{port}{path}"))
        finally:
            process.terminate()
            process.wait(30)


def _read(url: str) -> Any:
    """It takes a second to start."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def names() -> set[str]:
    """Names of all metrics that dashboards and rules ask for, as metadata has them; not of recorded series."""
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    asked = [query for board in BOARDS.values() for query in queries(board)] + [rule["expr"] for rule in rules]
    found = {name for query in asked for name in re.findall(r"(?<![\w:])(?:pyrite_|vllm:)[\w:]+", query)}
    return {plain(name) for name in found}


def plain(name: str) -> str:
    """A metric's name without what its kind adds: what that is differs from one format of a scrape to the other."""
    return re.sub(r"_(total|bucket|sum|count)$", "", name)


def empty_panels(prometheus: Prometheus, start: float, **variables: str) -> set[str]:
    """Titles of the panels one of whose queries found nothing since ``start``, with the board's name before."""
    empty = set()
    for board, described in BOARDS.items():
        for panel in panels(described):
            for target in panel["targets"]:
                expr = target["expr"].replace("$__rate_interval", "1m")
                for name, value in {"pod": ".*", "iteration": ".*", **variables}.items():
                    expr = expr.replace(f"${name}", value)
                assert "$" not in expr, expr
                if not prometheus.ever(expr, start):
                    empty.add(f"{board}: {panel['title']}")
    return empty


def in_fast_motion(rules: Object) -> Object:
    """The same rules where each minute is a second, and an hour a minute: what is waited for is seen in a test."""
    text = re.sub(r"\b(\d+)m\b", r"\1s", json.dumps(rules))
    text = re.sub(r"\b(\d+)h\b", r"\1m", text)
    fast: Object = json.loads(text)
    return fast
