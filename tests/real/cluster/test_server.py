"""An installation of values-eks.yaml: real vLLM servers judge, and take turns with training on the node's four GPUs.

The servers are vLLM's CPU build with a small model (scripts/real_vllm.py), mounted read-only into the pods of the
chart's StatefulSet: two with two GPUs each, because four take too long to start without a GPU. The GPUs exist only as
a resource that the scheduler counts. All pods share the only node: it has the label of the GPU group and no taint, and
the pods that need no GPU do not avoid it.
"""

import io
import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pyarrow.parquet as pq
import pytest
import yaml

from charts.tools import CHART
from pyrite import __version__
from real.cluster.faults import CLUSTER_COMMAND
from real.cluster.release import CONTROLLER, Object, Release, kubectl, wait_until
from real.cluster.vllm_server import RUN, host_volume, prepare_vllm, server_values
from real.vllm import REAL_VLLM

pytestmark = [pytest.mark.real, pytest.mark.slow]

GPU, GPUS, SERVERS = "nvidia.com/gpu", 4, 2
VALUES_FILES = (CHART / "values-eks.yaml",)
_EKS: Object = yaml.safe_load(VALUES_FILES[0].read_text())
_GPU_LABEL: dict[str, str] = _EKS["server"]["nodeSelector"]
_ANYWHERE: Object = {"affinity": None}


def small(requested: str, limit: str, **more: int) -> Object:
    """Small requests of memory and CPU, so that GPUs are the scarce resource."""
    return {"requests": {"cpu": "50m", "memory": requested, **more}, "limits": {"cpu": "2", "memory": limit, **more}}


def stage(values: Object) -> Object:
    """Changes to a stage's values: the CPU image for all, and any node."""
    changed: Object = {"resources": small("512Mi", "4Gi")}
    if "image" in values:
        return {**changed, "image": {"tag": __version__}}
    return {**changed, "pod": _ANYWHERE}


VALUES: Object = {
    "controller": {"image": {"repository": "localhost/pyrite-controller"}, **_ANYWHERE},
    "worker": {
        "image": {"repository": "localhost/pyrite-worker"},
        "stages": {name: stage(values) for name, values in _EKS["worker"]["stages"].items()},
    },
    "server": {**server_values(**small("2Gi", "6Gi", **{GPU: GPUS // SERVERS})), "replicas": SERVERS},
    "cost": {"dollarsPerHour": 36.0, "onBudget": "suspend"},  # a cent a second
    "extraObjects": host_volume("vllm", str(REAL_VLLM.VENV)),
}


@pytest.fixture(scope="module", autouse=True)
def gpus(node: Object) -> Iterator[None]:
    """The node offers ``GPUS`` GPUs, which do not exist, and has the label of the GPU group."""
    prepare_vllm()
    before = node["status"]["allocatable"].get(GPU, "0")
    name = node["metadata"]["name"]
    subprocess.run([str(CLUSTER_COMMAND), "--gpus", str(GPUS)], check=True, capture_output=True)
    kubectl("label", "node", name, "--overwrite", *(f"{label}={value}" for label, value in _GPU_LABEL.items()))
    yield
    kubectl("label", "node", name, *(f"{label}-" for label in _GPU_LABEL))
    subprocess.run([str(CLUSTER_COMMAND), "--gpus", before], check=True, capture_output=True)


def observe(release: Release, run: str) -> Object:
    """The run's status, the unfinished judge pods, and which pods use the GPUs.

    The replicas are read before the pods: a server that is at zero before a judge pod has ended is a fault.
    """
    replicas_ = replicas(release)
    pods = release.get("pods")["items"]
    status = release.status(run)
    server = [pod for pod in pods if pod["metadata"]["labels"].get("app.kubernetes.io/component") == "vllm"]
    training = [pod for pod in pods if pod["metadata"]["labels"].get("pyrite.dev/stage") == "finetune"]
    judging = [pod for pod in pods if pod["metadata"]["labels"].get("pyrite.dev/stage") == "judge"]
    return {
        "stage": status.get("stage") or "",
        "phase": status.get("phase"),
        "message": status.get("message", ""),
        "replicas": replicas_,
        "judging": [pod["metadata"]["name"] for pod in judging if pod["status"]["phase"] in ("Pending", "Running")],
        "server": [pod["metadata"]["name"] for pod in server],
        "training": [pod["metadata"]["name"] for pod in training],
    }


def test_server_is_up_for_judging_and_gone_for_training(
    release: Release, small_spec: Callable[..., Object], measured: Callable[..., None]
) -> None:
    """The servers claim all GPUs of the node, and training one, so the run ends only if they take turns."""
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
    judging = [entry for entry in history if entry["judging"]]
    training = [entry for entry in history if entry["training"] and entry["stage"] == "finetune"]
    assert judging
    assert all(entry["replicas"] == SERVERS and entry["server"] for entry in judging)
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


def replicas(release: Release) -> int:
    return int(release.get("statefulset", "pyrite-vllm")["spec"]["replicas"])


def test_suspended_run_releases_the_gpus(release: Release, small_spec: Callable[..., Object]) -> None:
    # Judging takes longer than the controller's syncs.
    release.apply("paused", small_spec(**{**RUN, "retrieve": {"range_max": 30}}))
    release.running("paused", "judge")
    assert replicas(release) == SERVERS
    release.edit("paused", suspend=True)
    release.wait("paused", "Suspended", seconds=120)
    wait_until("the server is scaled to zero", lambda: not replicas(release), 60)
    release.edit("paused", suspend=False)
    wait_until("the server is scaled up again", lambda: replicas(release), 60)
    release.edit("paused", cancel=True)
    release.wait("paused", "Cancelled", seconds=120)
    wait_until("the server is scaled to zero", lambda: not replicas(release), 60)


def test_doctor_finds_a_healthy_release(release: Release) -> None:
    done = release.pyrite("doctor", "--on", "cluster", "--namespace", release.namespace)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = " ".join(done.stdout.split())
    assert "ok release the controller is ready" in shown
    assert "the store is readable and writable with the pod's own role" in shown


def test_run_stops_at_its_budget_and_continues_with_more(release: Release, small_spec: Callable[..., Object]) -> None:
    release.apply("costly", small_spec(**{**RUN, "retrieve": {"range_max": 30}}, budget_dollars=0.8))
    status = release.wait("costly", "Suspended", seconds=300)
    assert "budget of $0.80" in status["message"]
    wait_until("the server is scaled to zero", lambda: not replicas(release), 60)
    release.edit("costly", budget_dollars=100)
    wait_until("the server is scaled up again", lambda: replicas(release), 120)
    release.edit("costly", cancel=True)
    release.wait("costly", "Cancelled", seconds=120)


def test_probe_uses_the_charts_server_and_stops(release: Release, small_spec: Callable[..., Object]) -> None:
    enough = {**RUN, "prepare": {**RUN["prepare"], "max_train_queries": 16}}  # too few queries are no verdict
    release.apply("probed", small_spec(**enough, until="probe"))
    probe = release.wait("probed", "Probed")["probe"]
    assert probe["verdict"] == "no-go", "the small model cannot judge"
    assert probe["failed"]
    assert probe["pageUri"].endswith("/runs/probed/probe/probe.html")
    wait_until("the server is scaled to zero", lambda: not replicas(release), 60)
    release.edit("probed", until=None)
    assert "failed its probe" in release.wait("probed", "Failed", seconds=60)["message"]


def test_server_of_a_dead_controller_is_scaled_to_zero(release: Release, small_spec: Callable[..., Object]) -> None:
    """The CronJob's Job finds an expired lease. A controller that returns scales the server up again."""
    release.apply("orphan", small_spec(**{**RUN, "retrieve": {"range_max": 40}}))
    release.running("orphan", "judge")
    scale = ("-n", release.namespace, "scale", "deployment", "pyrite-controller")
    kubectl(*scale, "--replicas=0")
    wait_until("the controller is gone", lambda: not release.get("pods", "-l", CONTROLLER)["items"])
    create_check = ("-n", release.namespace, "create", "job", "--from=cronjob/pyrite-vllm-lease")
    kubectl(*create_check, "fresh")
    wait_until("the lease is checked", lambda: release.get("job", "fresh")["status"].get("succeeded"))
    assert replicas(release) == SERVERS
    old = json.dumps({"spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}})
    kubectl("-n", release.namespace, "patch", "lease", "pyrite-vllm", "--type=merge", "-p", old)
    kubectl(*create_check, "expired")
    wait_until("the server is scaled to zero", lambda: not replicas(release))
    kubectl(*scale, "--replicas=1")
    wait_until("the server is scaled up again", lambda: replicas(release))
    release.edit("orphan", cancel=True)
    release.wait("orphan", "Cancelled", seconds=120)


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


def other_pod() -> Object:
    """A pod that is not Pyrite's, and that claims all GPUs of the node."""
    container = {
        "name": "other",
        "image": f"localhost/pyrite-worker:{__version__}",
        "command": ["sleep", "3600"],
        "resources": {"limits": {GPU: GPUS}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    user = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [container], "securityContext": user, "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other"}, "spec": spec}


def test_run_reports_gpus_that_others_use(release: Release, small_spec: Callable[..., Object]) -> None:
    kubectl("-n", release.namespace, "create", "-f", "-", stdin=json.dumps(other_pod()))
    wait_until("the GPUs are taken", lambda: release.get("pod", "other")["status"]["phase"] == "Running")
    release.apply("unshared", small_spec())

    def is_waiting() -> Object | None:
        status = release.status("unshared")
        return status if "cannot be scheduled" in status.get("message", "") and GPU in status["message"] else None

    status = wait_until("the first step with a GPU cannot be scheduled", is_waiting, 300)
    assert status["stage"] == "validate"
    assert any(c["type"] == "Degraded" and c["status"] == "True" for c in status["conditions"])
    for _ in range(30):
        assert [pod["status"]["phase"] for pod in release.pods("unshared", "validate")] == ["Pending"]
        time.sleep(1)
    wait_until("it is still reported", is_waiting, 60)
    kubectl("-n", release.namespace, "delete", "pod", "other")
    release.wait("unshared", seconds=600)


def test_nothing_that_costs_remains(release: Release) -> None:
    """Must be the last test of this file: it removes the release."""
    kubectl("-n", release.namespace, "delete", "trainingruns", "--all")
    release.uninstall()
    kinds = "pods,jobs,cronjobs,statefulsets,deployments,services,persistentvolumeclaims"
    wait_until("all is gone", lambda: not release.get(kinds)["items"])
