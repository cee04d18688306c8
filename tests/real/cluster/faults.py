"""Ways to break a cluster under a run. Each makes sure that it happened, or fails.

The node is this machine, so that a pod's processes are among its own: what is killed here is a process, not a record.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from charts.tools import program
from real.cluster.place import CONTROLLER, Object, Place, is_running, kubectl, until

UP = Path(os.environ.get("PYRITE_TEST_CLUSTER", "kind"))
INDEX = "batch.kubernetes.io/job-completion-index"


def kill_pods(place: Place, run: str, stage: str, times: int, dice: random.Random) -> None:
    """Delete random running pods of an Indexed Job, ``times`` in all.

    No shard's more than twice: it is kept back for longer each time. Of the deleted ones those count that failed, and
    a Job keeps a failed pod until another takes its place; one that had ended by itself just goes.
    """
    told: dict[str, str] = {}
    killed: set[str] = set()
    deadline = time.monotonic() + 900
    while len(killed) < times:
        going = place.status(run).get("stage") == stage and time.monotonic() < deadline
        assert going, f"{stage} was over, or took too long, after {len(killed)} of {times} kills"
        pods = {pod["metadata"]["uid"]: pod for pod in place.pods(run, stage)}
        phases = {uid: pod["status"]["phase"] for uid, pod in pods.items()}
        killed |= {uid for uid in told if phases.get(uid) == "Failed"}
        ending = [uid for uid in told if phases.get(uid) == "Running"]
        chosen = [
            pod
            for uid, pod in pods.items()
            if phases[uid] == "Running" and uid not in told and list(told.values()).count(_index(pod)) < 2
        ]
        if not chosen or len(killed) + len(ending) >= times:
            time.sleep(0.2)
            continue
        pod = dice.choice(chosen)
        told[pod["metadata"]["uid"]] = _index(pod)
        name = pod["metadata"]["name"]
        kubectl("-n", place.namespace, "delete", "pod", name, "--grace-period=1", "--wait=false", check=False)


def _index(pod: Object) -> str:
    index: str = pod["metadata"]["annotations"][INDEX]
    return index


def evict(place: Place, run: str, stage: str) -> None:
    """What a node's drain or an autoscaler does to one pod."""
    with stopping(place, run, stage) as pod:
        _ask_to_evict(place, pod)


def _ask_to_evict(place: Place, pod: Object) -> None:
    name = pod["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": place.namespace}}
    path = f"/api/v1/namespaces/{place.namespace}/pods/{name}/eviction"
    kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


@contextmanager
def stopping(place: Place, run: str, stage: str) -> Iterator[Object]:
    """A pod that the body has told to stop: it hears of it, cannot end by itself before that, and ends."""
    pod = place.running(run, stage)
    found = processes(pod)
    # A container's first process is deaf to what it does not catch, and Python starts without a hand on SIGTERM.
    until("its process listens", lambda: _has_sigterm(found, "SigCgt"), 60, every=0.02)
    with frozen(found):
        yield pod
        until("the kubelet tells it to stop", lambda: _has_sigterm(found, "ShdPnd"), 60)
    until("it has ended", lambda: _has_ended(place, pod), 120)


def _has_sigterm(found: Sequence[int], mask: str) -> bool:
    """Whether one of the processes has SIGTERM in a mask of /proc: caught, or pending."""
    for process in found:
        with suppress(OSError):
            line = re.search(rf"^{mask}:\s*(\w+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
            if line and int(line[1], 16) >> (signal.SIGTERM - 1) & 1:
                return True
    return False


def _has_ended(place: Place, pod: Object) -> bool:
    phases = {one["metadata"]["uid"]: one["status"]["phase"] for one in place.items("pods")}
    return phases.get(pod["metadata"]["uid"], "Gone") in ("Gone", "Failed", "Succeeded")


def processes(pod: Object) -> list[int]:
    """The processes of a pod's containers, as this machine numbers them."""
    if not UP.is_file():
        pytest.skip("this cluster's processes are not ours to kill")
    containers = [status["containerID"].rpartition("/")[2] for status in pod["status"]["containerStatuses"]]
    found = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with suppress(OSError):  # it ended just now
            text = path.read_text()
            if any(container in text for container in containers):
                found.append(int(path.parent.name))
    assert found, f"no process of {pod['metadata']['name']} is here"
    return found


@contextmanager
def frozen(found: Sequence[int]) -> Iterator[None]:
    """Processes do not move while the body runs: they are there, and do nothing."""
    for process in found:
        os.kill(process, signal.SIGSTOP)
    try:
        until("nothing of it moves", lambda: all(_state(process) == "T" for process in found), 10)
        yield
    finally:
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def _state(process: int) -> str:
    """Its letter in /proc; Z where it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def kill_pod(place: Place, run: str, stage: str) -> None:
    """kill -9 to what runs in a pod."""
    _kill(place, place.running(run, stage))


def kill_controller(place: Place) -> None:
    """kill -9 to the controller's process. Then to the pod too: the kubelet would hold its next start back."""
    pod = place.controller()
    _kill(place, pod)
    kubectl(*("-n", place.namespace, "delete", "pod", pod["metadata"]["name"]), "--grace-period=0", "--force")
    place.controller()


def _kill(place: Place, pod: Object) -> None:
    found = processes(pod)
    for process in found:
        with suppress(ProcessLookupError):  # it went with the first
            os.kill(process, signal.SIGKILL)
    name, container = pod["metadata"]["name"], pod["status"]["containerStatuses"][0]["containerID"]
    until("the kubelet says that it was killed", lambda: _exit_code(place.get("pod", name), container) == 137, 60)


def _exit_code(pod: Object, container: str) -> int | None:
    """How ``container`` ended: its pod's now, or the one before."""
    for status in pod["status"]["containerStatuses"]:
        for state in (status["state"], status["lastState"]):
            ended = state.get("terminated", {})
            if ended.get("containerID") == container:
                return int(ended["exitCode"])
    return None


@contextmanager
def _controllers(place: Place, number: int) -> Iterator[None]:
    kubectl("-n", place.namespace, "scale", "deployment", "-l", CONTROLLER, f"--replicas={number}")
    try:
        yield
    finally:
        kubectl("-n", place.namespace, "scale", "deployment", "-l", CONTROLLER, "--replicas=1")


@contextmanager
def no_controller(place: Place) -> Iterator[None]:
    """Nobody looks while the body runs."""
    with _controllers(place, 0):
        until("no controller is left", lambda: not place.get("pods", "-l", CONTROLLER)["items"], 90)
        yield


@contextmanager
def two_controllers(place: Place) -> Iterator[None]:
    """Two look and act while the body runs, and each does so a good many times."""
    with _controllers(place, 2):
        pods = place.controllers(2)
        before = [turns(place, pod) for pod in pods]
        yield
        assert all(turns(place, pod) > number + 5 for pod, number in zip(pods, before, strict=True))


def turns(place: Place, controller: Object) -> float:
    return place.metric(controller, "pyrite_controller_sync_seconds_count")


def finished_job_vanishes(place: Place, run: str, stage: str) -> None:
    """A Job ends and is deleted with its pods before the controller has looked."""
    with no_controller(place):
        job = until(f"the Job of {stage}", lambda: place.jobs(run, stage), 60)[-1]["metadata"]["name"]
        _complete(place, job, 180)
        kubectl("-n", place.namespace, "delete", "job", job, "--cascade=foreground")
        assert job not in [found["metadata"]["name"] for found in place.items("jobs")]


def _complete(place: Place, job: str, seconds: int) -> None:
    words = [f"job/{job}", "--for=condition=Complete", f"--timeout={seconds}s"]
    kubectl("-n", place.namespace, "wait", *words, seconds=seconds + 20)


def delete_running_job(place: Place, run: str, stage: str) -> None:
    """A person deletes a Job that runs, and could not have ended before it is told to stop."""
    with stopping(place, run, stage):
        job = place.jobs(run, stage)[-1]["metadata"]
        kubectl("-n", place.namespace, "delete", "job", job["name"], "--cascade=foreground", "--wait=false")
    until("it is gone", lambda: job["uid"] not in [found["metadata"]["uid"] for found in place.items("jobs")], 60)


def upgrade(place: Place, run: str, stage: str) -> None:
    """``helm upgrade`` with other settings for the worker, while it works: its Job and pods stay as they are."""
    with frozen(processes(place.running(run, stage))):
        before, old = _uids(place, run, stage), place.controller()
        place.helm("upgrade", worker={**place.values["worker"], "extraEnv": [{"name": "UPGRADED", "value": "1"}]})
        new = place.controller()
        assert new["metadata"]["uid"] != old["metadata"]["uid"]
        until("it has looked", lambda: turns(place, new) > 2, 60)
        assert _uids(place, run, stage) == before, "the upgrade took the Job or its pods away"


def _uids(place: Place, run: str, stage: str) -> dict[str, set[str]]:
    found = {"jobs": place.jobs(run, stage), "pods": place.pods(run, stage)}
    return {kind: {one["metadata"]["uid"] for one in those} for kind, those in found.items()}


def restart(name: str, down: float) -> None:
    """kill -9 to a part of the cluster itself, and start it again after ``down`` seconds."""
    with without(name):
        time.sleep(down)


@contextmanager
def without(name: str) -> Iterator[None]:
    """A part of the cluster itself is killed, and started again after the body."""
    process = component(name)
    os.kill(process, signal.SIGKILL)
    try:
        until(f"{name} is dead", lambda: _state(process) == "Z", 20)
        yield
    finally:
        subprocess.run([str(UP)], check=True, timeout=180)
    assert component(name) != process


def component(name: str) -> int:
    """The process of a part of the cluster itself."""
    if not UP.is_file():
        pytest.skip("this cluster's own processes are not ours to kill")
    return int((Path(os.environ["KUBECONFIG"]).parent / "run" / f"{name}.pid").read_text())


def lose_the_node(place: Place, run: str, stage: str) -> None:
    """Nothing on the node moves, and its pod is told to stop: the run says so, and goes on when the node is back.

    Kubernetes tells pods of a lost node to stop by itself, but not where all nodes are lost: that is done here.
    """
    with stopping(place, run, stage) as pod, without("kubelet"):
        _ask_to_evict(place, pod)
        name = pod["metadata"]["name"]
        until("the run tells of the pod", lambda: name in place.status(run).get("message", ""), 240)


def drain(place: Place, run: str, stage: str) -> None:
    """The node is emptied for maintenance, of the controller too, and put back."""
    node = json.loads(kubectl("get", "nodes", "-o", "json"))["items"][0]["metadata"]["name"]
    controller = place.controller()
    words = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=150s"]
    chosen = "--pod-selector=app.kubernetes.io/name=pyrite"
    try:
        with stopping(place, run, stage):
            draining = subprocess.Popen([program("kubectl"), "drain", node, *words, chosen])
        assert draining.wait(200) == 0
        assert not [one for one in place.items("pods") if is_running(one)], "something of Pyrite's still runs"
    finally:
        kubectl("uncordon", node)
    assert place.controller()["metadata"]["uid"] != controller["metadata"]["uid"]


@contextmanager
def no_s3(place: Place) -> Iterator[None]:
    """The S3 server answers nobody while the body runs."""
    server = subprocess.check_output(["pgrep", "-P", place.environment["PYRITE_S3_PROCESS"]], text=True).split()[0]
    with frozen([int(server)]):
        yield


def stop_s3(place: Place, seconds: float) -> None:
    with no_s3(place):
        time.sleep(seconds)


def stop_s3_as_a_step_ends(place: Place, run: str, stage: str) -> None:
    """S3 is silent when the controller looks there for what comes next, and for a minute.

    The run says so, and the controller lives.
    """
    before = place.controller()
    with ExitStack() as silence:
        with frozen(processes(before)):  # for less than its probe's patience: a step that takes seconds
            _complete(place, place.jobs(run, stage)[-1]["metadata"]["name"], 40)
            silence.enter_context(no_s3(place))
        ends = time.monotonic() + 60
        until("the run tells of the store", lambda: "the store" in place.status(run).get("message", ""), 60)
        time.sleep(max(0.0, ends - time.monotonic()))
    until("the run goes on", lambda: place.status(run).get("stage") != stage, 120)
    assert _start(place.controller()) == _start(before)


def _start(pod: Object) -> tuple[str, int]:
    return pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]
