"""What a run called small has made in a store, and which of its steps the faults of a proxy met."""

import json
from collections import Counter
from typing import Any

from pyrite.store import Store
from real.proxy import Proxy, Request

RUN = "runs/small"


def manifests(store: Store) -> dict[str, dict[str, Any]]:
    return {key: json.loads(store.read(key)) for key in store.keys(f"{RUN}/steps")}


def outputs(store: Store) -> dict[str, str]:
    """Digest of every output of the run but those that tell of times, from the manifests; each is what stands there."""
    found = {}
    for manifest in manifests(store).values():
        for entry in manifest["outputs"]:
            assert store.checksum(f"{RUN}/{entry['key']}") == (entry["bytes"], entry["sha256"])
            if not entry["key"].startswith("report/report.") and not entry["key"].endswith("model/README.md"):
                found[entry["key"]] = entry["sha256"]
    return found


def step_of(request: Request, made: dict[str, str]) -> str:
    """The step whose output or manifest was asked for; ``made`` gives steps by key of an output."""
    key = request.target.partition("?")[0].partition(f"/{RUN}/")[2]
    for folder in ("steps/", "scratch/"):
        if key.startswith(folder):
            return key.removeprefix(folder).partition("/")[0].removesuffix(".json")
    return made.get(key, "the run")


def by_step(proxy: Proxy, store: Store) -> Counter[str]:
    """How often faults met a step's outputs, its manifest, or its kept checkpoints, by step."""
    made = {entry["key"]: m["step"] for m in manifests(store).values() for entry in m["outputs"]}
    return Counter(step_of(request, made) for request in list(proxy.requests) if request.fault)
