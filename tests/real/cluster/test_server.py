"""A real vLLM server in the cluster as judge, sharing the node's GPUs with training, in time.

The server is vLLM's CPU build with a small model (scripts/real_vllm.py), mounted read-only into pods of the chart's own
StatefulSet. Nothing is behind the GPUs but the scheduler's count of them, and that is what is shared. The model cannot
judge: its grades prove the way, not the quality.
"""

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from real.cluster.faults import UP
from real.cluster.place import Object, Place, kubectl, until
from real.vllm import REAL_VLLM, SCRIPT, VARYING

pytestmark = [pytest.mark.real, pytest.mark.slow]

GPU, GPUS = "nvidia.com/gpu", 2
SERVER = "app.kubernetes.io/component=vllm"
#: The image's own; the worker image serves for the server too, since it has a Python.
PYTHON = "python3.11"


def volume() -> list[Object]:
    """The server's environment as a volume of this machine's disk: a claim, which restricted pods may use."""
    name = "{{ .Release.Namespace }}-vllm"
    size = {"storage": "8Gi"}
    shared: Object = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    there = {
        **shared,
        "capacity": size,
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": str(REAL_VLLM.VENV), "type": "Directory"},
        "claimRef": {"namespace": "{{ .Release.Namespace }}", "name": "vllm"},
    }
    claim = {**shared, "volumeName": name, "resources": {"requests": size}}
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": there},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "vllm"}, "spec": claim},
    ]


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
    "server": {
        "enabled": True,
        "image": {"repository": "localhost/pyrite-worker", "tag": "0.1.0"},
        "args": [*REAL_VLLM.arguments(Path("/vllm/model"), "0.0.0.0", 8000), VARYING],
        "model": {"allowHub": False},
        "resources": claiming("100m", "3Gi", "6Gi"),
        "startupSeconds": 600,
        "extraVolumes": [{"name": "vllm", "persistentVolumeClaim": {"claimName": "vllm", "readOnly": True}}],
        "extraVolumeMounts": [{"name": "vllm", "mountPath": "/vllm", "readOnly": True}],
        "extraEnv": [
            {"name": "PYTHONPATH", "value": f"/vllm/lib/{PYTHON}/site-packages"},
            {"name": "LD_LIBRARY_PATH", "value": "/vllm/lib"},
            {"name": "VLLM_CPU_KVCACHE_SPACE", "value": "1"},
            {"name": "TORCH_COMPILE_DISABLE", "value": "1"},  # the image has no compiler
        ],
    },
    "extraObjects": volume(),
}

#: 32 pairs: on a CPU a pair takes a second.
RUN: Object = {
    "prepare": {"min_chars": 40, "max_chars": 400, "max_train_queries": 8},
    "retrieve": {"top_k": 4},
    "mine": {"negatives": 1, "max_negative_share": None},
    "finetune": {"batch_size": 2, "epochs": 3, "max_tokens": 32},
    "judge": {"kind": "vllm", "model": REAL_VLLM.MODEL_NAME, "shards": 2},
}


@pytest.fixture(scope="module", autouse=True)
def gpus(node: Object) -> Iterator[None]:
    """The node claims to have GPUS."""
    if not REAL_VLLM.READY.exists():
        pytest.skip("no real vLLM here: `make real-vllm ARGS=--for-pods` installs it (3.4 GB)")
    if not (REAL_VLLM.VENV / "lib" / PYTHON).is_dir():
        pytest.skip(f"{REAL_VLLM.VENV.name} was made with another Python than the worker image's {PYTHON}")
    if not UP.is_file():
        pytest.skip("needs a node on this machine that can claim GPUs")
    subprocess.run([sys.executable, str(SCRIPT), "--for-pods"], check=True, capture_output=True)
    before = node["status"]["allocatable"].get(GPU, "0")
    subprocess.run([str(UP), "--gpus", str(GPUS)], check=True, capture_output=True)
    yield
    subprocess.run([str(UP), "--gpus", before], check=True, capture_output=True)


def seen(place: Place, run: str) -> Object:
    """Who has the GPUs now."""
    status = place.status(run)
    pods = place.get("pods")["items"]
    server = [pod for pod in pods if pod["metadata"]["labels"].get("app.kubernetes.io/component") == "vllm"]
    training = [pod for pod in pods if pod["metadata"]["labels"].get("pyrite.dev/stage") == "finetune"]
    return {
        "stage": status.get("stage") or "",
        "phase": status.get("phase"),
        "message": status.get("message", ""),
        "replicas": place.get("statefulset", "pyrite-vllm")["spec"]["replicas"],
        "server": [pod["metadata"]["name"] for pod in server],
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
