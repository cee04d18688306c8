"""Many shards and many finished runs do not make the controller slower."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from real.cluster.place import Object, Place, kubectl, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
RUNS, SHARDS = 50, 500


def figures(place: Place, seconds: float = 30) -> dict[str, float]:
    """What turns take, over some time, from the controller's own metrics."""
    pod = place.controller()

    def read() -> dict[str, float]:
        names = ("turn_seconds_sum", "turn_seconds_count", "api_calls_total")
        return {name: place.metric(pod, f"pyrite_controller_{name}") for name in names}

    before, began = read(), time.monotonic()
    time.sleep(seconds)
    after, took = read(), time.monotonic() - began
    change = {name: after[name] - before[name] for name in before}
    return {
        "seconds a turn": change["turn_seconds_sum"] / change["turn_seconds_count"],
        "calls a minute": change["api_calls_total"] / took * 60,
        "calls a turn": change["api_calls_total"] / change["turn_seconds_count"],
    }


def finished(place: Place, number: int, spec: Object) -> None:
    """A run that ended long ago, as the API server holds it."""
    name = f"old-{number}"
    place.apply(name, {**spec, "cancel": True})
    status: dict[str, Any] = {"phase": "Succeeded", "observedGeneration": 1, "message": "as it was"}
    patch = json.dumps({"status": status})
    kubectl("-n", place.namespace, "patch", "tr", name, "--subresource=status", "--type=merge", "-p", patch)


def test_fifty_finished_runs_and_500_shards(
    place: Place, small: Callable[..., Object], measured: Callable[..., None]
) -> None:
    """A turn's calls do not grow with either: the runs, all Jobs, and the pods of the one run that has a Job.

    Its seconds may, by the bytes of these lists: a few times what an empty one takes, with room for a busy machine.
    """
    empty = figures(place)
    for number in range(RUNS):
        finished(place, number, small())
    full = figures(place)
    # No node takes the judging pods: the shards wait for as long as is needed here.
    nowhere = {**place.values["worker"]["stages"]["judge"], "pod": {"nodeSelector": {"no": "node"}}}
    stages = {**place.values["worker"]["stages"], "judge": nowhere}
    place.helm("upgrade", worker={**place.values["worker"], "stages": stages}, judge={"parallelism": 20})
    place.apply("wide", small(judge={"shards": SHARDS}))
    until("the shards' pods wait", lambda: len(place.pods("wide", "judge")) == 20, 600)
    (job,) = place.jobs("wide", "judge")
    assert job["spec"]["completions"] == SHARDS
    until("that is told", lambda: "finds no node" in place.status("wide").get("message", ""), 60)
    wide = figures(place)
    print(json.dumps({"empty": empty, "50 finished runs": full, "and a run of 500 shards": wide}))
    measured(table="scale", empty=empty, full=full, wide=wide)
    assert empty["calls a turn"] < 1.5
    assert full["calls a turn"] < 1.5
    assert wide["calls a turn"] < 3.5
    for crowded in (full, wide):
        assert crowded["seconds a turn"] < empty["seconds a turn"] * 5 + 0.5
    assert len(json.dumps(place.status("wide"))) < 4000
