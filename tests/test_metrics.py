"""The metrics endpoint: a wrong port is named, a taken one stops nobody."""

import socket
import time
import urllib.request
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pyrite import metrics, metrics_server
from pyrite.errors import Interrupted, PyriteError, UserError
from pyrite.executors.counted import Counted
from pyrite.progress import ProgressEvents


@pytest.mark.parametrize("text", ["http", "-1", "0", "65536", "9100.5"])
def test_a_port_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(metrics_server.PORT_VARIABLE, text)
    with pytest.raises(UserError, match=f"PYRITE_METRICS_PORT is '{text}'"):
        metrics_server.serve_from_env()


def test_of_several_workers_on_a_machine_one_has_the_port_and_the_others_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv(metrics_server.PORT_VARIABLE, str(port))
        metrics_server.serve_from_env()
    assert f"port {port} cannot be used" in caplog.text
    metrics_server.serve_from_env()
    metrics_server.serve_from_env()  # once in a process, however often it is asked for
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        assert b"# TYPE pyrite_judge_pairs_total counter" in response.read()


@pytest.mark.parametrize(("error", "waits"), [(PyriteError("no"), True), (Interrupted("told to stop"), False)])
def test_a_step_that_fails_waits_for_a_last_scrape_and_one_that_is_told_to_stop_does_not(
    error: PyriteError, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: the pairs that a shard failed for were never seen."""
    monkeypatch.setattr(metrics_server._looks, "times", [])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert metrics_server.serve(port, CollectorRegistry())
    for _ in range(2):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").close()
        time.sleep(0.4)
    began = time.monotonic()
    with pytest.raises(type(error)), metrics_server.scraped_at_end():
        raise error
    assert (time.monotonic() - began > 0.7) == waits, "nobody looks again: after twice the usual pause it ends"


def test_every_metric_keeps_the_conventions() -> None:
    """Names are for good: a dashboard that somebody made breaks when one changes."""
    names = [metric.name for metric in metrics.DEFINITIONS]
    assert len(set(names)) == len(names)
    for metric in metrics.DEFINITIONS:
        assert metric.name.startswith("pyrite_")
        assert not metric.name.endswith(("_ms", "_milliseconds", "_minutes", "_hours", "_percent"))
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert metric.help[0].isupper() or metric.help[0].isdigit()
        assert set(metric.labels) <= set(metrics.LABELS), "a label whose values nobody bounds"
    assert {label for metric in metrics.DEFINITIONS for label in metric.labels} == set(metrics.LABELS)


def test_what_is_served_is_what_is_described() -> None:
    served = {family.name for family in metrics.REGISTRY.collect()}
    described = {metric.name.removesuffix("_total") for metric in metrics.DEFINITIONS}
    assert served <= described


def test_what_was_shown_before_is_gone() -> None:
    """Series of a run that was deleted must not stay for as long as the controller lives."""
    try:
        metrics.SNAPSHOT_GAUGES.replace([metrics.Sample(metrics.RUN_STEPS, ("old",), 3)])
        assert metrics.REGISTRY.get_sample_value("pyrite_run_steps", {"run": "old"}) == 3
        metrics.SNAPSHOT_GAUGES.replace([metrics.Sample(metrics.RUN_STEPS, ("new",), 4)])
        assert metrics.REGISTRY.get_sample_value("pyrite_run_steps", {"run": "old"}) is None
        assert metrics.REGISTRY.get_sample_value("pyrite_run_steps", {"run": "new"}) == 4
    finally:
        metrics.SNAPSHOT_GAUGES.replace([])


def test_a_steps_progress_is_shown_and_passed_on() -> None:
    told: list[dict[str, Any]] = []
    progress = Counted(ProgressEvents(told.append))
    progress.begin(10, "pairs judged")
    progress.advance(4)
    assert metrics.REGISTRY.get_sample_value("pyrite_step_units", {"unit": "pairs judged"}) == 10
    assert metrics.REGISTRY.get_sample_value("pyrite_step_units_done", {"unit": "pairs judged"}) == 4
    progress.begin(None, "records read")
    progress.message("done")
    assert metrics.REGISTRY.get_sample_value("pyrite_step_units", {"unit": "pairs judged"}) is None
    assert metrics.REGISTRY.get_sample_value("pyrite_step_units_done", {"unit": "records read"}) == 0
    assert [event["event"] for event in told] == ["begin", "advance", "begin", "message"]
