"""A real vLLM server as judge in the cluster. It takes turns with training on the node's GPUs.

The server is vLLM's CPU build with a small model (scripts/real_vllm.py), mounted read-only into the pods of the chart's
StatefulSet. The GPUs exist only as a resource that the scheduler counts.
"""

import io
import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pyarrow.parquet as pq
import pytest

from real.cluster.faults import CLUSTER_COMMAND
from real.cluster.release import Object, Release, kubectl, wait_until
from real.cluster.vllm_server import RUN, host_volume, prepare_vllm, server_values
from real.vllm import REAL_VLLM

pytestmark = [pytest.mark.real, pytest.mark.slow]

GPU, GPUS = "nvidia.com/gpu", 2
SERVER = "app.kubernetes.io/component=vllm"


def all_gpus(cpu: str, memory: str, memory_limit: str) -> Object:
    """Resources of a container that claims all GPUs of the node."""
    return {
        "requests": {"cpu": cpu, "memory": memory, GPU: GPUS},
        "limits": {"cpu": "2", "memory": memory_limit, GPU: GPUS},
    }


#: Small requests, so that GPUs are the scarce resource, even if other tests share the node.
SMALL: Object = {"resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "4Gi"}}}

VALUES: Object = {
    "worker": {
        "image": {"repository": "localhost/pyrite-worker"},
        "stages": {
            **dict.fromkeys(("prepare", "validate", "retrieve", "judge", "mine", "evaluate"), SMALL),
            "finetune": {"resources": all_gpus("100m", "1Gi", "4Gi")},
        },
    },
    "server": server_values(**all_gpus("100m", "3Gi", "6Gi")),
    "extraObjects": host_volume("vllm", str(REAL_VLLM.VENV)),
}


@pytest.fixture(scope="module", autouse=True)
def gpus(node: Object) -> Iterator[None]:
    """The node offers ``GPUS`` GPUs, which do not exist."""
    prepare_vllm()
    before = node["status"]["allocatable"].get(GPU, "0")
    subprocess.run([str(CLUSTER_COMMAND), "--gpus", str(GPUS)], check=True, capture_output=True)
    yield
    subprocess.run([str(CLUSTER_COMMAND), "--gpus", before], check=True, capture_output=True)


def observe(release: Release, run: str) -> Object:
    """The run's status, and which pods use the GPUs."""
    status = release.status(run)
    pods = release.get("pods")["items"]
    server = [pod for pod in pods if pod["metadata"]["labels"].get("app.kubernetes.io/component") == "vllm"]
    training = [pod for pod in pods if pod["metadata"]["labels"].get("pyrite.dev/stage") == "finetune"]
    return {
        "stage": status.get("stage") or "",
        "phase": status.get("phase"),
        "message": status.get("message", ""),
        "replicas": release.get("statefulset", "pyrite-vllm")["spec"]["replicas"],
        "server": [pod["metadata"]["name"] for pod in server],
        "training": [pod["metadata"]["name"] for pod in training],
    }


def test_server_is_up_for_judging_and_gone_for_training(
    release: Release, small_spec: Callable[..., Object], measured: Callable[..., None]
) -> None:
    """Server and training both claim all GPUs of the node, so the run ends only if they take turns."""
    assert release.get("statefulset", "pyrite-vllm")["spec"]["replicas"] == 0
    start = time.monotonic()
    release.apply("shared", small_spec(**RUN))
    history: list[Object] = []
    while not history or history[-1]["phase"] != "Succeeded":
        now = observe(release, "shared")
        assert now["phase"] != "Failed", now["message"]
        assert time.monotonic() - start < 1800, history[-5:]
        if not history or {**history[-1], "at": 0} != {**now, "at": 0}:
            history.append({**now, "at": round(time.monotonic() - start, 1)})
            print(json.dumps(history[-1]))
        time.sleep(1)
    judging = [entry for entry in history if entry["stage"] == "judge" and entry["phase"] == "Running"]
    training = [entry for entry in history if entry["training"] and entry["stage"] == "finetune"]
    assert judging
    assert all(entry["replicas"] == 1 and entry["server"] for entry in judging)
    assert training
    assert not [entry for entry in history if entry["training"] and (entry["replicas"] or entry["server"])]
    assert history[-1]["replicas"] == 0
    rows = judgments(release, "shared")
    assert rows
    assert all(row["prompt_tokens"] > 100 and row["grade"] in (1, 2, 3, 4) for row in rows)
    measured(
        table="cluster-server",
        pairs=len(rows),
        starting=next(t["at"] for t in judging) - next(t["at"] for t in history if t["replicas"]),
        total=history[-1]["at"],
    )


def test_suspended_run_releases_the_gpus(release: Release, small_spec: Callable[..., Object]) -> None:
    def replicas() -> int:
        return int(release.get("statefulset", "pyrite-vllm")["spec"]["replicas"])

    # More pairs than the previous test has cached.
    release.apply("paused", small_spec(**{**RUN, "retrieve": {"range_max": 8}}))
    release.running("paused", "judge")
    assert replicas() == 1
    release.edit("paused", suspend=True)
    release.wait("paused", "Suspended", seconds=120)
    wait_until("the server is scaled to zero", lambda: not replicas(), 60)
    release.edit("paused", suspend=False)
    wait_until("the server is scaled up again", replicas, 60)
    release.edit("paused", cancel=True)
    release.wait("paused", "Cancelled", seconds=120)
    wait_until("the server is scaled to zero", lambda: not replicas(), 60)


def judgments(release: Release, run: str) -> list[Object]:
    """The rows of the run's judgments in the store."""
    client = release.s3()
    found: list[Object] = []
    for key in release.digests(run):
        if "/judgments/shard-" in key:
            object_key = f"{release.namespace}/runs/{run}/{key}"
            data = client.get_object(Bucket="pyrite", Key=object_key)["Body"].read()
            found += pq.read_table(io.BytesIO(data)).to_pylist()
    return found


def start_unmanaged_server(release: Release) -> str:
    """Start a copy of the chart's server that the controller does not scale; returns its URL."""
    original = release.get("statefulset", "pyrite-vllm")
    name = "unmanaged"
    spec = {**original["spec"], "replicas": 1}
    spec["selector"] = {"matchLabels": {**spec["selector"]["matchLabels"], "managed": "no"}}
    metadata = {**spec["template"]["metadata"]}
    metadata["labels"] = {**metadata["labels"], "managed": "no"}
    spec["template"] = {**spec["template"], "metadata": metadata}
    manifest = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name}, "spec": spec}
    kubectl("-n", release.namespace, "create", "-f", "-", stdin=json.dumps(manifest))
    wait_until(f"{name} is ready", lambda: release.get("statefulset", name)["status"].get("readyReplicas"), 600)
    return f"http://{name}-0.pyrite-vllm:8000"


def test_training_reports_gpus_that_are_not_released(release: Release, small_spec: Callable[..., Object]) -> None:
    """The controller does not scale this server, so training waits until the test scales it down."""
    url = start_unmanaged_server(release)
    release.apply("unshared", small_spec(**RUN, resources={"judge_urls": [url]}))

    def is_waiting() -> Object | None:
        status = release.status("unshared")
        return status if "cannot be scheduled" in status.get("message", "") and GPU in status["message"] else None

    status = wait_until("training cannot be scheduled", is_waiting, 600)
    assert status["stage"] == "finetune"
    assert any(c["type"] == "Degraded" and c["status"] == "True" for c in status["conditions"])
    for _ in range(30):
        assert [pod["status"]["phase"] for pod in release.pods("unshared", "finetune")] == ["Pending"]
        time.sleep(1)
    wait_until("it is still reported", is_waiting, 60)
    kubectl("-n", release.namespace, "scale", "statefulset", "unmanaged", "--replicas=0")
    release.wait("unshared", seconds=600)
