"""The controller's time and API calls with many finished runs and many shards."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from real.cluster.release import Object, Release, kubectl, wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]
RUNS, SHARDS = 50, 500


def measure_syncs(release: Release, seconds: float = 30) -> dict[str, float]:
    """Mean time and API calls of the syncs in ``seconds``, from the controller's metrics."""
    pod = release.controller()

    def read() -> dict[str, float]:
        names = ("sync_seconds_sum", "sync_seconds_count", "api_calls_total")
        return {name: release.metric(pod, f"pyrite_controller_{name}") for name in names}

    before, start = read(), time.monotonic()
    time.sleep(seconds)
    after, elapsed = read(), time.monotonic() - start
    change = {name: after[name] - before[name] for name in before}
    return {
        "seconds per sync": change["sync_seconds_sum"] / change["sync_seconds_count"],
        "calls per minute": change["api_calls_total"] / elapsed * 60,
        "calls per sync": change["api_calls_total"] / change["sync_seconds_count"],
    }


def add_finished_run(release: Release, number: int, spec: Object) -> None:
    """Create a run that has ended."""
    name = f"old-{number}"
    release.apply(name, {**spec, "cancel": True})
    status: dict[str, Any] = {"phase": "Succeeded", "observedGeneration": 1, "message": "finished"}
    patch = json.dumps({"status": status})
    kubectl("-n", release.namespace, "patch", "tr", name, "--subresource=status", "--type=merge", "-p", patch)


def test_finished_runs_and_shards_add_no_api_calls(
    release: Release, small_spec: Callable[..., Object], measured: Callable[..., None]
) -> None:
    """Their number does not change a sync's calls: it lists the runs, the Jobs, and the pods of each active run.

    A sync with long lists may take up to five times as long as one with empty lists, plus 0.5 s for a busy machine. A
    large cluster is not available, so the finished runs and the shards do no work.
    """
    empty = measure_syncs(release)
    for number in range(RUNS):
        add_finished_run(release, number, small_spec())
    full = measure_syncs(release)
    # No node fits the judge pods, so the shards wait during the measurement.
    unschedulable = {**release.values["worker"]["stages"]["judge"], "pod": {"nodeSelector": {"no": "node"}}}
    stages = {**release.values["worker"]["stages"], "judge": unschedulable}
    release.helm("upgrade", worker={**release.values["worker"], "stages": stages}, judge={"parallelism": 20})
    release.apply("wide", small_spec(judge={"shards": SHARDS}))
    wait_until("the shards' pods exist", lambda: len(release.pods("wide", "judge")) == 20, 600)
    (job,) = release.jobs("wide", "judge")
    assert job["spec"]["completions"] == SHARDS
    wait_until("it is reported", lambda: "cannot be scheduled" in release.status("wide").get("message", ""), 60)
    wide = measure_syncs(release)
    print(json.dumps({"empty": empty, "50 finished runs": full, "and a run of 500 shards": wide}))
    measured(table="scale", empty=empty, full=full, wide=wide)
    assert empty["calls per sync"] < 1.5
    assert full["calls per sync"] < 1.5
    assert wide["calls per sync"] < 3.5
    for loaded in (full, wide):
        assert loaded["seconds per sync"] < empty["seconds per sync"] * 5 + 0.5
    assert len(json.dumps(release.status("wide"))) < 4000
