"""A panel's questions, with Grafana's variables filled in, and Prometheus' answers to them."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import requests

from pyrite.errors import UserError

#: Seconds between two scrapes, as the chart's PodMonitor has it.
SCRAPE = 15

_NICE = (15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400)

Json = dict[str, Any]


class Span(NamedTuple):
    """The time that a dashboard shows, in seconds since 1970."""

    start: float
    end: float


class Series(NamedTuple):
    """One line or bar: its name in the legend, its labels, and (seconds since 1970, value) in order of time."""

    name: str
    labels: dict[str, str]
    points: list[tuple[float, float]]


class Answer(NamedTuple):
    """What a panel's queries gave: all their series, or what Prometheus had against one of them."""

    series: list[Series]
    errors: list[str]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(math.isfinite(value) for one in self.series for _, value in one.points)


class Refused(Exception):
    """Prometheus does not take a query; the message is its own."""


def step_for(span: Span, width: int) -> int:
    """Seconds between points on a panel of ``width`` pixels: at most one a pixel, and no more than are scraped."""
    wanted = (span.end - span.start) / width
    return next((nice for nice in _NICE if nice >= wanted), _NICE[-1])


def filled(text: str, values: Mapping[str, str]) -> str:
    """``text`` with each $name and ${name} replaced; a name that is not among ``values`` stays, for Prometheus to say.

    Whole names only: $run is no part of $run_id, and $__interval none of $__interval_ms.
    """
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: values.get(found[1] or found[2], found[0]), text)


def times(span: Span, step: int) -> dict[str, str]:
    """Grafana's variables of time. A rate needs two scrapes at least: Grafana takes four scrapes' time or more."""
    seconds = round(span.end - span.start)
    names = {"__interval": step, "__rate_interval": max(step + SCRAPE, 4 * SCRAPE), "__range": seconds}
    return {name: f"{value}s" for name, value in names.items()} | {"__interval_ms": str(1000 * step)}


def named(legend: str, labels: Mapping[str, str]) -> str:
    """A series' name: the legend with its {{label}}s filled in."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), legend)


class Prometheus:
    """A Prometheus' HTTP API at ``url``."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._session = requests.Session()

    def panel(self, panel: Json, values: Mapping[str, str], span: Span, width: int) -> Answer:
        """The answers to a panel's queries, on ``width`` pixels."""
        series: list[Series] = []
        errors: list[str] = []
        step = step_for(span, width)
        for target in panel["targets"]:
            expr = filled(target["expr"], {**values, **times(span, step)})
            try:
                found = self._instant(expr, span) if target.get("instant") else self._range(expr, span, step)
            except Refused as error:
                errors.append(f"{target['refId']}: {error}")
                continue
            for labels, points in found:
                series.append(Series(named(target["legendFormat"], labels), labels, points))
        return Answer(series, errors)

    def values(self, query: str, chosen: Mapping[str, str], span: Span) -> list[str]:
        """What a dashboard's variable offers; ``query`` is label_values(series, label).

        Raises:
            Refused: the query is wrong.
        """
        wanted = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
        if not wanted:
            raise Refused(f"{query} is not label_values(series, label)")
        asked = {"match[]": filled(wanted[1], chosen), "start": str(span.start), "end": str(span.end)}
        found: list[str] = self._get(f"label/{wanted[2]}/values", asked)
        return sorted(found, key=lambda value: [(part.isdigit(), part.zfill(20)) for part in re.split(r"(\d+)", value)])

    def _range(self, expr: str, span: Span, step: int) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        start, end = span.start // step * step, span.end // step * step
        data = self._get("query_range", {"query": expr, "start": str(start), "end": str(end), "step": str(step)})
        return [(one["metric"], [(t, float(v)) for t, v in one["values"]]) for one in data["result"]]

    def _instant(self, expr: str, span: Span) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        data = self._get("query", {"query": expr, "time": str(span.end)})
        if data["resultType"] == "scalar":
            return [({}, [(data["result"][0], float(data["result"][1]))])]
        return [(one["metric"], [(one["value"][0], float(one["value"][1]))]) for one in data["result"]]

    def _get(self, path: str, asked: Mapping[str, str]) -> Any:
        try:
            reply = self._session.get(f"{self.url}/api/v1/{path}", params=asked, timeout=60)
            said = reply.json()
        except requests.exceptions.JSONDecodeError:
            raise UserError(f"{self.url} answers, but not as Prometheus does; give Prometheus' own address.") from None
        except requests.RequestException as error:
            raise UserError(f"{self.url} does not answer ({type(error).__name__}). Is Prometheus there?") from None
        if said.get("status") != "success":
            raise Refused(str(said.get("error", reply.status_code)))
        return said["data"]
