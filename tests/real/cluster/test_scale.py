"""Many shards and many finished runs do not make the controller slower."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from real.cluster.place import Object, Place, kubectl

pytestmark = [pytest.mark.real, pytest.mark.slow]
RUNS = 50


def figures(place: Place, seconds: float = 30) -> dict[str, float]:
    """Seconds a turn and API calls a minute, over some time, from the controller's own metrics."""

    def read() -> dict[str, float]:
        pod = place.get("pods", "-l", "app.kubernetes.io/component=controller")["items"][0]["metadata"]["name"]
        path = f"/api/v1/namespaces/{place.namespace}/pods/{pod}:9100/proxy/metrics"
        text = kubectl("get", "--raw", path)
        names = ("turn_seconds_sum", "turn_seconds_count", "api_calls_total")
        return {n: float(re.search(rf"^pyrite_controller_{n} (\S+)$", text, re.M)[1]) for n in names}  # type: ignore[index]

    before, began = read(), time.monotonic()
    time.sleep(seconds)
    after, took = read(), time.monotonic() - began
    change = {name: after[name] - before[name] for name in before}
    return {
        "seconds a turn": change["turn_seconds_sum"] / change["turn_seconds_count"],
        "calls a minute": change["api_calls_total"] / took * 60,
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
    """Turns take as many calls with them as without; wall time may grow by the bytes of one list."""
    empty = figures(place)
    for number in range(RUNS):
        finished(place, number, small())
    full = figures(place)
    assert full["calls a minute"] <= empty["calls a minute"] * 1.5 + 5
    # The pods ask for more than the node has: 500 shards wait, and none needs an image.
    place.helm("upgrade", worker={**place.values["worker"], "nodeSelector": {"no": "node"}}, judge={"parallelism": 20})
    place.apply("wide", small(judge={"shards": 500}))
    time.sleep(15)
    wide = figures(place)
    print(json.dumps({"empty": empty, "50 finished runs": full, "and a run of 500 shards": wide}))
    measured(table="scale", empty=empty, full=full, wide=wide)
    assert wide["calls a minute"] < 200
    size = len(json.dumps(place.status("wide")))
    assert size < 4000
