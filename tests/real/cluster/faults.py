"""Ways to break a cluster under a run. Each does it, makes sure that it happened, and says what it did."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from real.cluster.place import ROOT, Object, Place, kubectl, until

UP = ROOT.parent / "shared/kube/up"
CONTROLLER = "app.kubernetes.io/component=controller"


def _is_gone(place: Place, pod: Object) -> bool:
    uid = pod["metadata"]["uid"]
    return uid not in [found["metadata"]["uid"] for found in place.items("pods")]


def kill_pods(place: Place, run: str, stage: str, times: int, dice: random.Random) -> int:
    """Delete random running pods of a stage, half of them without a moment to put work away; how many."""
    killed: set[str] = set()
    deadline = time.monotonic() + 600  # a shard that fails is kept back for longer each time
    while len(killed) < times and time.monotonic() < deadline:
        if killed and place.status(run).get("stage") != stage:
            break
        pods = place.pods(run, stage)
        running = [p for p in pods if p["status"]["phase"] == "Running" and p["metadata"]["uid"] not in killed]
        if not running:
            time.sleep(0.2)
            continue
        pod = dice.choice(running)
        grace = dice.choice(["0", "1"])
        words = [
            "-n",
            place.namespace,
            "delete",
            "pod",
            pod["metadata"]["name"],
            f"--grace-period={grace}",
            "--wait=false",
        ]
        if grace == "0":
            words.append("--force")
        if "NotFound" not in kubectl(*words, check=False) and _is_told_to_stop(place, pod):
            killed.add(pod["metadata"]["uid"])
    return len(killed)


def _is_told_to_stop(place: Place, pod: Object) -> bool:
    """Whether it is gone, or going: a Job keeps the record of its pods for a while."""
    found = {p["metadata"]["uid"]: p["metadata"] for p in place.items("pods")}.get(pod["metadata"]["uid"])
    return found is None or "deletionTimestamp" in found


def evict(place: Place, run: str, stage: str) -> None:
    """What a node's drain or an autoscaler does to one pod."""
    pod = next(pod for pod in place.pods(run, stage) if pod["status"]["phase"] == "Running")
    name = pod["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": place.namespace}}
    path = f"/api/v1/namespaces/{place.namespace}/pods/{name}/eviction"
    kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))
    until("the pod is evicted", lambda: _is_gone(place, pod) or _ended(place, name), 90)


def _ended(place: Place, name: str) -> bool:
    return any(
        pod["metadata"]["name"] == name and pod["status"]["phase"] in ("Failed", "Succeeded")
        for pod in place.items("pods")
    )


def kill_controller(place: Place) -> None:
    """kill -9 to the controller: its pod is gone without a word, and another comes."""
    (pod,) = [p for p in place.get("pods", "-l", CONTROLLER)["items"] if "deletionTimestamp" not in p["metadata"]][:1]
    kubectl(
        "-n", place.namespace, "delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force", "--wait=false"
    )
    until("the controller is gone", lambda: _is_gone(place, pod), 60)


@contextmanager
def no_controller(place: Place) -> Iterator[None]:
    """Nobody looks while the body runs."""
    kubectl("-n", place.namespace, "scale", "deployment", "-l", CONTROLLER, "--replicas=0")
    until("no controller is left", lambda: not place.get("pods", "-l", CONTROLLER)["items"], 90)
    yield
    kubectl("-n", place.namespace, "scale", "deployment", "-l", CONTROLLER, "--replicas=1")


def finished_job_vanishes(place: Place, run: str, stage: str) -> None:
    """A Job ends and is deleted with its pods before the controller has looked."""
    with no_controller(place):
        job = until(f"the Job of {stage}", lambda: _jobs(place, run, stage), 60)[-1]["metadata"]["name"]
        kubectl("-n", place.namespace, "wait", f"job/{job}", "--for=condition=Complete", "--timeout=180s", seconds=200)
        kubectl("-n", place.namespace, "delete", "job", job, "--cascade=foreground")
        assert job not in [found["metadata"]["name"] for found in place.items("jobs")]


def delete_running_job(place: Place, run: str, stage: str) -> None:
    """A person deletes a Job that runs."""
    job = _jobs(place, run, stage)[-1]
    kubectl("-n", place.namespace, "delete", "job", job["metadata"]["name"], "--cascade=foreground")
    uids = [found["metadata"]["uid"] for found in place.items("jobs")]
    assert job["metadata"]["uid"] not in uids


def _jobs(place: Place, run: str, stage: str) -> list[Object]:
    return list(place.get("jobs", "-l", f"pyrite.dev/run={run},pyrite.dev/stage={stage}")["items"])


def restart(component: str, down: float) -> None:
    """kill -9 to a part of the cluster itself, and start it again after ``down`` seconds."""
    if not UP.is_file():
        pytest.skip("this cluster's own processes are not ours to kill")
    home = Path(os.environ["KUBECONFIG"]).parent
    process = int((home / "run" / f"{component}.pid").read_text())
    os.kill(process, signal.SIGKILL)
    until(f"{component} is dead", lambda: not _alive(process), 20)
    time.sleep(down)
    subprocess.run([str(UP)], check=True, capture_output=True, timeout=180)
    assert int((home / "run" / f"{component}.pid").read_text()) != process


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def drain(place: Place, run: str, stage: str) -> None:
    """The node is emptied for maintenance, and put back."""
    name = json.loads(kubectl("get", "nodes", "-o", "json"))["items"][0]["metadata"]["name"]
    before = [pod for pod in place.pods(run, stage) if pod["status"]["phase"] == "Running"]
    assert before, "nothing ran on the node"
    try:
        kubectl(
            "drain", name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=150s",
            f"--pod-selector=app.kubernetes.io/name=pyrite,pyrite.dev/run={run}", seconds=200,
        )  # fmt: skip
        assert all(_is_gone(place, pod) or _ended(place, pod["metadata"]["name"]) for pod in before)
    finally:
        kubectl("uncordon", name)


def stop_s3(place: Place, seconds: float) -> None:
    """The S3 server answers nobody for a while."""
    process = int(place.environment["PYRITE_S3_PROCESS"])
    server = int(subprocess.check_output(["pgrep", "-P", str(process)], text=True).split()[0])
    os.kill(server, signal.SIGSTOP)
    try:
        until("the server is stopped", lambda: Path(f"/proc/{server}/stat").read_text().split()[2] == "T", 10)
        time.sleep(seconds)
    finally:
        os.kill(server, signal.SIGCONT)
