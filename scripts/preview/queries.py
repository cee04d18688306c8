"""Run a panel's queries against Prometheus, with Grafana's variables expanded."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import requests

from pyrite.errors import UserError

#: Scrape interval of the chart's PodMonitor, in seconds.
SCRAPE_INTERVAL = 15

_STEPS = (15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400)

Json = dict[str, Any]


class Span(NamedTuple):
    """Time range of a dashboard, in seconds since the Unix epoch."""

    start: float
    end: float


class Series(NamedTuple):
    """One line or bar: legend, labels, and (Unix time, value) points in order."""

    name: str
    labels: dict[str, str]
    points: list[tuple[float, float]]


class PanelData(NamedTuple):
    """Results of a panel's queries: all series, and Prometheus' error messages."""

    series: list[Series]
    errors: list[str]

    @property
    def empty(self) -> bool:
        """Whether no series has a finite value."""
        return not any(math.isfinite(value) for one in self.series for _, value in one.points)


class QueryRejected(Exception):
    """Prometheus rejected a query; the message is its own."""


def step_for(span: Span, width: int) -> int:
    """Seconds between points on a panel of ``width`` pixels: at most one point per pixel and per scrape."""
    minimum = (span.end - span.start) / width
    return next((step for step in _STEPS if step >= minimum), _STEPS[-1])


def expand_variables(text: str, values: Mapping[str, str]) -> str:
    """Replace each $name and ${name} in ``text``; unknown names stay, so that Prometheus reports them.

    Only complete names match: $run does not match in $run_id, nor $__interval in $__interval_ms.
    """
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: values.get(match[1] or match[2], match[0]), text)


def time_variables(span: Span, step: int) -> dict[str, str]:
    """Grafana's time variables. A rate needs at least two scrapes; Grafana uses at least four scrape intervals."""
    seconds = round(span.end - span.start)
    names = {
        "__interval": step,
        "__rate_interval": max(step + SCRAPE_INTERVAL, 4 * SCRAPE_INTERVAL),
        "__range": seconds,
    }
    return {name: f"{value}s" for name, value in names.items()} | {"__interval_ms": str(1000 * step)}


def series_name(legend: str, labels: Mapping[str, str]) -> str:
    """Expand the {{label}}s of a legend."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), legend)


class Prometheus:
    """Client for the HTTP API of the Prometheus at ``url``."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._session = requests.Session()

    def panel(self, panel: Json, values: Mapping[str, str], span: Span, width: int) -> PanelData:
        """Run a panel's queries for a plot of ``width`` pixels."""
        series: list[Series] = []
        errors: list[str] = []
        step = step_for(span, width)
        for target in panel["targets"]:
            expr = expand_variables(target["expr"], {**values, **time_variables(span, step)})
            try:
                results = self._instant(expr, span) if target.get("instant") else self._range(expr, span, step)
            except QueryRejected as error:
                errors.append(f"{target['refId']}: {error}")
                continue
            for labels, points in results:
                series.append(Series(series_name(target["legendFormat"], labels), labels, points))
        return PanelData(series, errors)

    def values(self, query: str, variables: Mapping[str, str], span: Span) -> list[str]:
        """Values of a dashboard variable; ``query`` is label_values(series, label).

        Raises:
            QueryRejected: the query is invalid.
        """
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
        if not match:
            raise QueryRejected(f"{query} is not label_values(series, label)")
        params = {"match[]": expand_variables(match[1], variables), "start": str(span.start), "end": str(span.end)}
        values: list[str] = self._get(f"label/{match[2]}/values", params)
        return sorted(
            values, key=lambda value: [(part.isdigit(), part.zfill(20)) for part in re.split(r"(\d+)", value)]
        )

    def _range(self, expr: str, span: Span, step: int) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        start, end = span.start // step * step, span.end // step * step
        data = self._get("query_range", {"query": expr, "start": str(start), "end": str(end), "step": str(step)})
        return [(one["metric"], [(t, float(v)) for t, v in one["values"]]) for one in data["result"]]

    def _instant(self, expr: str, span: Span) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        data = self._get("query", {"query": expr, "time": str(span.end)})
        if data["resultType"] == "scalar":
            return [({}, [(data["result"][0], float(data["result"][1]))])]
        return [(one["metric"], [(one["value"][0], float(one["value"][1]))]) for one in data["result"]]

    def _get(self, path: str, params: Mapping[str, str]) -> Any:
        try:
            response = self._session.get(f"{self.url}/api/v1/{path}", params=params, timeout=60)
            body = response.json()
        except requests.exceptions.JSONDecodeError:
            raise UserError(f"{self.url} responds, but is not Prometheus; pass the address of Prometheus.") from None
        except requests.RequestException as error:
            raise UserError(
                f"Cannot reach {self.url} ({type(error).__name__}); check that Prometheus is running."
            ) from None
        if body.get("status") != "success":
            raise QueryRejected(str(body.get("error", response.status_code)))
        return body["data"]
