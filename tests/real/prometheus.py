"""Run a real Prometheus in tests, and query it for the data of dashboards and rules."""

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
    """Client for the HTTP API; ``get`` returns the JSON for a path."""

    def __init__(self, get: Callable[[str], Any]):
        self._get = get

    def _query(self, path: str, **params: Any) -> Any:
        response = self._get(f"/api/v1/{path}?{urllib.parse.urlencode(params)}")
        assert response["status"] == "success", response
        return response["data"]

    def now(self, expr: str) -> list[Object]:
        """Current series of ``expr``."""
        return list(self._query("query", query=expr)["result"])

    def ever(self, expr: str, start: float) -> list[Object]:
        """Series of ``expr`` at any time since ``start``."""
        step = max(1, round((time.time() - start) / 500))
        return list(self._query("query_range", query=expr, start=start, end=time.time(), step=step)["result"])

    def scraped(self) -> set[str]:
        """Names of all metrics of the current targets, including those without series; see ``plain``."""
        return {plain(entry["metric"]) for entry in self._query("targets/metadata")}

    def firing(self, start: float) -> set[str]:
        """Names of the alerts that fired since ``start``."""
        found = self.ever('ALERTS{alertstate="firing"}', start)
        return {series["metric"]["alertname"] for series in found}

    def until(self, description: str, expr: str, seconds: float) -> None:
        """Wait until ``expr`` returns a series."""
        deadline = time.monotonic() + seconds
        while not self.now(expr):
            assert time.monotonic() < deadline, f"{description}: not within {seconds:.0f} s"
            time.sleep(0.5)


def program() -> str:
    """Path of Prometheus; skips the test if it is not installed."""
    found = shutil.which("prometheus")
    if not found:
        pytest.skip("Prometheus is not installed; `make real-prometheus` installs it")
    return found


@contextmanager
def running(folder: Path, targets: Object, rules: Object) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes ``targets`` (labels by address) every second and evaluates ``rules``."""
    port = free_port()
    jobs = [
        {"job_name": address, "static_configs": [{"targets": [address], "labels": labels}]}
        for address, labels in targets.items()
    ]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    options = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [program(), *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield Prometheus(lambda path: _read(f"http://127.0.0.1:{port}{path}"))
        finally:
            process.terminate()
            process.wait(30)


def _read(url: str) -> Any:
    """Return the JSON at ``url``; retries while Prometheus starts."""
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
    """Names of all scraped metrics in dashboards and rules, in the form of Prometheus' metadata."""
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    expressions = [query for board in BOARDS.values() for query in queries(board)] + [rule["expr"] for rule in rules]
    found = {name for query in expressions for name in re.findall(r"(?<![\w:])(?:pyrite_|vllm:)[\w:]+", query)}
    return {plain(name) for name in found}


def plain(name: str) -> str:
    """A metric's name without its type's suffix, which differs between scrape formats."""
    return re.sub(r"_(total|bucket|sum|count)$", "", name)


#: Panels of the DCGM exporter's metrics, which no test has.
GPU_PANELS = {f"{board}: GPU {what}" for board in ("run", "vllm") for what in ("utilization", "memory used", "power")}


def empty_panels(prometheus: Prometheus, start: float, **variables: str) -> set[str]:
    """Panels with a query that returned nothing since ``start``, as `dashboard: title`."""
    empty = set()
    for board, content in BOARDS.items():
        for panel in panels(content):
            for target in panel["targets"]:
                expr = target["expr"].replace("$__rate_interval", "1m")
                for name, value in {"pod": ".*", "iteration": ".*", **variables}.items():
                    expr = expr.replace(f"${name}", value)
                assert "$" not in expr, expr
                if not prometheus.ever(expr, start):
                    empty.add(f"{board}: {panel['title']}")
    return empty


def shortened(rules: Object) -> Object:
    """The rules with minutes replaced by seconds and hours by minutes, so that tests need not wait."""
    text = re.sub(r"\b(\d+)m\b", r"\1s", json.dumps(rules))
    text = re.sub(r"\b(\d+)h\b", r"\1m", text)
    fast: Object = json.loads(text)
    return fast
