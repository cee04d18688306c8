"""The metrics, their names, and the endpoint that serves them."""

import socket
import time
import urllib.request
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pyrite import metrics, metrics_server
from pyrite.errors import Interrupted, PyriteError, UserError
from pyrite.executors.step import MeteredProgress
from pyrite.progress import ProgressEvents


@pytest.mark.parametrize("text", ["http", "-1", "0", "65536", "9100.5"])
def test_an_invalid_port_is_reported(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(metrics_server.PORT_VARIABLE, text)
    with pytest.raises(UserError, match=f"PYRITE_METRICS_PORT is '{text}'"):
        metrics_server.serve_from_env()


def test_a_port_in_use_is_only_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv(metrics_server.PORT_VARIABLE, str(port))
        metrics_server.serve_from_env()
    assert f"port {port} cannot be used" in caplog.text
    metrics_server.serve_from_env()
    metrics_server.serve_from_env()  # a second call in the same process does nothing
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        assert b"# TYPE pyrite_judge_pairs_total counter" in response.read()


@pytest.mark.parametrize(("error", "waits"), [(PyriteError("no"), True), (Interrupted("stopped"), False)])
def test_only_a_failed_step_waits_for_a_last_scrape(
    error: PyriteError, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: the pairs that made a shard fail were never scraped."""
    monkeypatch.setattr(metrics_server._scrapes, "times", [])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert metrics_server.serve(port, CollectorRegistry())
    for _ in range(2):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").close()
        time.sleep(0.4)
    start = time.monotonic()
    with pytest.raises(type(error)), metrics_server.scraped_at_end():
        raise error
    assert (time.monotonic() - start > 0.7) == waits, "without a scrape, the wait is twice the usual interval"


def test_metric_names_follow_the_conventions() -> None:
    """A name cannot be corrected later: users' dashboards would break."""
    names = [metric.name for metric in metrics.DEFINITIONS]
    assert len(set(names)) == len(names)
    for metric in metrics.DEFINITIONS:
        assert metric.name.startswith("pyrite_")
        assert not metric.name.endswith(("_ms", "_milliseconds", "_minutes", "_hours", "_percent"))
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert metric.help[0].isupper() or metric.help[0].isdigit()
        assert set(metric.labels) <= set(metrics.LABELS), (
            "a label is not in LABELS: its number of values may be unbounded"
        )
    assert {label for metric in metrics.DEFINITIONS for label in metric.labels} == set(metrics.LABELS)


def test_only_described_metrics_are_served() -> None:
    served = {family.name for family in metrics.REGISTRY.collect()}
    described = {metric.name.removesuffix("_total") for metric in metrics.DEFINITIONS}
    assert served <= described


def test_new_samples_replace_all_earlier_ones() -> None:
    """Otherwise the series of a deleted run would be exported until the controller restarts."""
    try:
        metrics.SNAPSHOT_GAUGES.replace([metrics.Sample(metrics.RUN_STEPS, ("old",), 3)])
        assert metrics.REGISTRY.get_sample_value("pyrite_run_steps", {"run": "old"}) == 3
        metrics.SNAPSHOT_GAUGES.replace([metrics.Sample(metrics.RUN_STEPS, ("new",), 4)])
        assert metrics.REGISTRY.get_sample_value("pyrite_run_steps", {"run": "old"}) is None
        assert metrics.REGISTRY.get_sample_value("pyrite_run_steps", {"run": "new"}) == 4
    finally:
        metrics.SNAPSHOT_GAUGES.replace([])


def test_step_progress_is_counted_and_passed_on() -> None:
    events: list[dict[str, Any]] = []
    progress = MeteredProgress(ProgressEvents(events.append))
    progress.begin(10, "pairs judged")
    progress.advance(4)
    assert metrics.REGISTRY.get_sample_value("pyrite_step_units", {"unit": "pairs judged"}) == 10
    assert metrics.REGISTRY.get_sample_value("pyrite_step_units_done", {"unit": "pairs judged"}) == 4
    progress.begin(None, "records read")
    progress.message("done")
    assert metrics.REGISTRY.get_sample_value("pyrite_step_units", {"unit": "pairs judged"}) is None
    assert metrics.REGISTRY.get_sample_value("pyrite_step_units_done", {"unit": "records read"}) == 0
    assert [event["event"] for event in events] == ["begin", "advance", "begin", "message"]
