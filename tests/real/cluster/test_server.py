"""A real vLLM server in the cluster as judge, sharing the node's GPUs with training, in time.

The server is vLLM's CPU build with a small model (scripts/real_vllm.py), mounted read-only into pods of the chart's own
StatefulSet. Nothing is behind the GPUs but the scheduler's count of them, and that is what is shared.
"""

import io
import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pyarrow.parquet as pq
import pytest

from real.cluster.faults import UP
from real.cluster.place import Object, Place, kubectl, until
from real.cluster.serving import RUN, on_disk, ready, server
from real.vllm import REAL_VLLM

pytestmark = [pytest.mark.real, pytest.mark.slow]

GPU, GPUS = "nvidia.com/gpu", 2
SERVER = "app.kubernetes.io/component=vllm"


def claiming(cpu: str, memory: str, most: str) -> Object:
    """Resources of a container that takes all of the node's GPUs."""
    return {
        "requests": {"cpu": cpu, "memory": memory, GPU: GPUS},
        "limits": {"cpu": "2", "memory": most, GPU: GPUS},
    }


#: Other tests may share the node: what is scarce here is to be GPUs, not CPUs.
MODEST: Object = {
    "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "4Gi"}}
}

VALUES: Object = {
    "worker": {
        "image": {"repository": "localhost/pyrite-worker"},
        "stages": {
            **dict.fromkeys(("prepare", "validate", "retrieve", "judge", "mine", "evaluate"), MODEST),
            "finetune": {"resources": claiming("100m", "1Gi", "4Gi")},
        },
    },
    "server": server(**claiming("100m", "3Gi", "6Gi")),
    "extraObjects": on_disk("vllm", str(REAL_VLLM.VENV)),
}


@pytest.fixture(scope="module", autouse=True)
def gpus(node: Object) -> Iterator[None]:
    """The node claims to have GPUS."""
    ready()
    before = node["status"]["allocatable"].get(GPU, "0")
    subprocess.run([str(UP), "--gpus", str(GPUS)], check=True, capture_output=True)
    yield
    subprocess.run([str(UP), "--gpus", before], check=True, capture_output=True)


def seen(place: Place, run: str) -> Object:
    """Who has the GPUs now."""
    status = place.status(run)
    pods = place.get("pods")["items"]
    serving = [pod for pod in pods if pod["metadata"]["labels"].get("app.kubernetes.io/component") == "vllm"]
    training = [pod for pod in pods if pod["metadata"]["labels"].get("pyrite.dev/stage") == "finetune"]
    return {
        "stage": status.get("stage") or "",
        "phase": status.get("phase"),
        "message": status.get("message", ""),
        "replicas": place.get("statefulset", "pyrite-vllm")["spec"]["replicas"],
        "server": [pod["metadata"]["name"] for pod in serving],
        "training": [pod["metadata"]["name"] for pod in training],
    }


def test_the_server_is_up_for_judging_and_gone_for_training(
    place: Place, small: Callable[..., Object], measured: Callable[..., None]
) -> None:
    """Server and training both claim all of the node's GPUs; each has them when it needs them, so that the run ends."""
    assert place.get("statefulset", "pyrite-vllm")["spec"]["replicas"] == 0
    began = time.monotonic()
    place.apply("shared", small(**RUN))
    turns: list[Object] = []
    while not turns or turns[-1]["phase"] != "Succeeded":
        now = seen(place, "shared")
        assert now["phase"] != "Failed", now["message"]
        assert time.monotonic() - began < 1800, turns[-5:]
        if not turns or {**turns[-1], "at": 0} != {**now, "at": 0}:
            turns.append({**now, "at": round(time.monotonic() - began, 1)})
            print(json.dumps(turns[-1]))
        time.sleep(1)
    judging = [turn for turn in turns if turn["stage"] == "judge" and turn["phase"] == "Running"]
    training = [turn for turn in turns if turn["training"] and turn["stage"] == "finetune"]
    assert judging
    assert all(turn["replicas"] == 1 and turn["server"] for turn in judging)
    assert training
    assert not [turn for turn in turns if turn["training"] and (turn["replicas"] or turn["server"])]
    assert turns[-1]["replicas"] == 0
    rows = judgments(place, "shared")
    assert rows
    assert all(row["prompt_tokens"] > 100 and row["grade"] in (1, 2, 3, 4) for row in rows)
    measured(
        table="cluster-server",
        pairs=len(rows),
        starting=next(t["at"] for t in judging) - next(t["at"] for t in turns if t["replicas"]),
        whole=turns[-1]["at"],
    )


def test_a_suspended_run_gives_the_gpus_back(place: Place, small: Callable[..., Object]) -> None:
    def replicas() -> int:
        return int(place.get("statefulset", "pyrite-vllm")["spec"]["replicas"])

    # More pairs than the run before has had judged.
    place.apply("paused", small(**{**RUN, "retrieve": {"range_max": 8}}))
    place.running("paused", "judge")
    assert replicas() == 1
    place.edit("paused", suspend=True)
    place.wait("paused", "Suspended", seconds=120)
    until("the server is at zero", lambda: not replicas(), 60)
    place.edit("paused", suspend=False)
    until("the server is asked for again", replicas, 60)
    place.edit("paused", cancel=True)
    place.wait("paused", "Cancelled", seconds=120)
    until("the server is at zero", lambda: not replicas(), 60)


def judgments(place: Place, run: str) -> list[Object]:
    """What the judge said, as the store holds it."""
    client = place.s3()
    found: list[Object] = []
    for key in place.digests(run):
        if "/judgments/shard-" in key:
            where = f"{place.namespace}/runs/{run}/{key}"
            data = client.get_object(Bucket="pyrite", Key=where)["Body"].read()
            found += pq.read_table(io.BytesIO(data)).to_pylist()
    return found


def kept_up(place: Place) -> str:
    """The chart's server once more, which nobody scales; its address."""
    whole = place.get("statefulset", "pyrite-vllm")
    name = "kept-up"
    spec = {**whole["spec"], "replicas": 1}
    spec["selector"] = {"matchLabels": {**spec["selector"]["matchLabels"], "kept": "up"}}
    metadata = {**spec["template"]["metadata"]}
    metadata["labels"] = {**metadata["labels"], "kept": "up"}
    spec["template"] = {**spec["template"], "metadata": metadata}
    made = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name}, "spec": spec}
    kubectl("-n", place.namespace, "create", "-f", "-", stdin=json.dumps(made))
    until(f"{name} answers", lambda: place.get("statefulset", name)["status"].get("readyReplicas"), 600)
    return f"http://{name}-0.pyrite-vllm:8000"


def test_without_the_scaling_training_waits_and_says_for_what(place: Place, small: Callable[..., Object]) -> None:
    """The same run and server, but the server is not the controller's to scale: until a person makes room."""
    url = kept_up(place)
    place.apply("unshared", small(**RUN, resources={"judge_urls": [url]}))

    def waits() -> Object | None:
        status = place.status("unshared")
        return status if "finds no node" in status.get("message", "") and GPU in status["message"] else None

    status = until("training finds no node", waits, 600)
    assert status["stage"] == "finetune"
    assert any(c["type"] == "Degraded" and c["status"] == "True" for c in status["conditions"])
    for _ in range(30):
        assert [pod["status"]["phase"] for pod in place.pods("unshared", "finetune")] == ["Pending"]
        time.sleep(1)
    until("it still says so", waits, 60)
    kubectl("-n", place.namespace, "scale", "statefulset", "kept-up", "--replicas=0")
    place.wait("unshared", seconds=600)
