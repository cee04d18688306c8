"""The outputs of the run ``small`` in a store, and the steps that a proxy's faults affected."""

import json
from collections import Counter
from typing import Any

from pyrite.store import Store
from real.proxy import Proxy, Request

RUN = "runs/small"


def manifests(store: Store) -> dict[str, dict[str, Any]]:
    return {key: json.loads(store.read(key)) for key in store.keys(f"{RUN}/steps")}


def outputs(store: Store) -> dict[str, str]:
    """Verified digests of the run's outputs, except the report and the model card, which contain times."""
    digests = {}
    for manifest in manifests(store).values():
        for entry in manifest["outputs"]:
            assert store.checksum(f"{RUN}/{entry['key']}") == (entry["bytes"], entry["sha256"])
            if not entry["key"].startswith("report/report.") and not entry["key"].endswith("model/README.md"):
                digests[entry["key"]] = entry["sha256"]
    return digests


def step_of(request: Request, steps: dict[str, str]) -> str:
    """The step whose output or manifest was requested; ``steps`` maps an output's key to its step."""
    key = request.target.partition("?")[0].partition(f"/{RUN}/")[2]
    for folder in ("steps/", "scratch/"):
        if key.startswith(folder):
            return key.removeprefix(folder).partition("/")[0].removesuffix(".json")
    return steps.get(key, "the run")


def faults_by_step(proxy: Proxy, store: Store) -> Counter[str]:
    """The number of faults by step: in its outputs, its manifest, or its saved checkpoints."""
    steps = {entry["key"]: m["step"] for m in manifests(store).values() for entry in m["outputs"]}
    return Counter(step_of(request, steps) for request in list(proxy.requests) if request.fault)
