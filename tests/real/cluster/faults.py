"""Faults of a cluster during a run. Each fault checks that it happened, and fails the test otherwise.

The node is this machine, so a pod's processes are local: faults kill processes, not only API objects.
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
from real.cluster.release import CONTROLLER, Object, Release, is_running, kubectl, wait_until

CLUSTER_COMMAND = Path(os.environ.get("PYRITE_TEST_CLUSTER", "kind"))
INDEX = "batch.kubernetes.io/job-completion-index"


def kill_pods(release: Release, run: str, stage: str, times: int, rng: random.Random) -> None:
    """Delete random running pods of an Indexed Job until ``times`` of them have failed.

    At most two per shard, because the back-off grows each time. Only pods that failed count: a Job keeps a failed pod
    until its replacement exists, while a pod that had already ended disappears.
    """
    deleted: dict[str, str] = {}
    failed: set[str] = set()
    deadline = time.monotonic() + 900
    while len(failed) < times:
        in_time = release.status(run).get("stage") == stage and time.monotonic() < deadline
        assert in_time, f"{stage} ended, or took too long, after {len(failed)} of {times} kills"
        pods = {pod["metadata"]["uid"]: pod for pod in release.pods(run, stage)}
        phases = {uid: pod["status"]["phase"] for uid, pod in pods.items()}
        failed |= {uid for uid in deleted if phases.get(uid) == "Failed"}
        ending = [uid for uid in deleted if phases.get(uid) == "Running"]
        chosen = [
            pod
            for uid, pod in pods.items()
            if phases[uid] == "Running" and uid not in deleted and list(deleted.values()).count(_index(pod)) < 2
        ]
        if not chosen or len(failed) + len(ending) >= times:
            time.sleep(0.2)
            continue
        pod = rng.choice(chosen)
        deleted[pod["metadata"]["uid"]] = _index(pod)
        name = pod["metadata"]["name"]
        kubectl("-n", release.namespace, "delete", "pod", name, "--grace-period=1", "--wait=false", check=False)


def _index(pod: Object) -> str:
    index: str = pod["metadata"]["annotations"][INDEX]
    return index


def evict(release: Release, run: str, stage: str) -> None:
    """Evict one pod, as a drain or an autoscaler does."""
    with terminating(release, run, stage) as pod:
        _request_eviction(release, pod)


def _request_eviction(release: Release, pod: Object) -> None:
    name = pod["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": release.namespace}}
    path = f"/api/v1/namespaces/{release.namespace}/pods/{name}/eviction"
    kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


@contextmanager
def terminating(release: Release, run: str, stage: str) -> Iterator[Object]:
    """Yield a running pod that the body terminates.

    Its processes are stopped until SIGTERM is pending, so that the pod cannot end before. Then it must end.
    """
    pod = release.running(run, stage)
    found = processes(pod)
    # PID 1 of a container ignores signals without a handler, and Python installs none for SIGTERM at its start.
    wait_until("the pod's process handles SIGTERM", lambda: _has_sigterm(found, "SigCgt"), 60, every=0.02)
    with frozen(found):
        yield pod
        wait_until("the kubelet sends SIGTERM", lambda: _has_sigterm(found, "ShdPnd"), 60)
    wait_until("the pod has ended", lambda: _has_ended(release, pod), 120)


def _has_sigterm(found: Sequence[int], mask: str) -> bool:
    """Whether a process has SIGTERM in a signal mask of /proc: SigCgt (caught) or ShdPnd (pending)."""
    for process in found:
        with suppress(OSError):
            line = re.search(rf"^{mask}:\s*(\w+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
            if line and int(line[1], 16) >> (signal.SIGTERM - 1) & 1:
                return True
    return False


def _has_ended(release: Release, pod: Object) -> bool:
    phases = {one["metadata"]["uid"]: one["status"]["phase"] for one in release.items("pods")}
    return phases.get(pod["metadata"]["uid"], "Gone") in ("Gone", "Failed", "Succeeded")


def processes(pod: Object) -> list[int]:
    """The process ids of a pod's containers on this machine."""
    if not CLUSTER_COMMAND.is_file():
        pytest.skip("this cluster's processes are not on this machine")
    containers = [status["containerID"].rpartition("/")[2] for status in pod["status"]["containerStatuses"]]
    found = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with suppress(OSError):  # it has just ended
            text = path.read_text()
            if any(container in text for container in containers):
                found.append(int(path.parent.name))
    assert found, f"no process of {pod['metadata']['name']} is on this machine"
    return found


@contextmanager
def frozen(found: Sequence[int]) -> Iterator[None]:
    """Stop processes (SIGSTOP) while the body runs."""
    for process in found:
        os.kill(process, signal.SIGSTOP)
    try:
        wait_until("all processes are stopped", lambda: all(_state(process) == "T" for process in found), 10)
        yield
    finally:
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def _state(process: int) -> str:
    """The state letter of a process in /proc; Z if it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def kill_pod(release: Release, run: str, stage: str) -> None:
    """Kill a pod's processes (SIGKILL)."""
    _kill(release, release.running(run, stage))


def kill_controller(release: Release) -> None:
    """Kill the controller's process, then delete its pod: the kubelet would delay a restart of the container."""
    pod = release.controller()
    _kill(release, pod)
    kubectl(*("-n", release.namespace, "delete", "pod", pod["metadata"]["name"]), "--grace-period=0", "--force")
    release.controller()


def _kill(release: Release, pod: Object) -> None:
    found = processes(pod)
    for process in found:
        with suppress(ProcessLookupError):  # it ended with the first process
            os.kill(process, signal.SIGKILL)
    name, container = pod["metadata"]["name"], pod["status"]["containerStatuses"][0]["containerID"]
    wait_until("the kubelet reports the kill", lambda: _exit_code(release.get("pod", name), container) == 137, 60)


def _exit_code(pod: Object, container: str) -> int | None:
    """The exit code of ``container``, the pod's current or previous one."""
    for status in pod["status"]["containerStatuses"]:
        for state in (status["state"], status["lastState"]):
            ended = state.get("terminated", {})
            if ended.get("containerID") == container:
                return int(ended["exitCode"])
    return None


@contextmanager
def _controllers(release: Release, number: int) -> Iterator[None]:
    kubectl("-n", release.namespace, "scale", "deployment", "-l", CONTROLLER, f"--replicas={number}")
    try:
        yield
    finally:
        kubectl("-n", release.namespace, "scale", "deployment", "-l", CONTROLLER, "--replicas=1")


@contextmanager
def no_controller(release: Release) -> Iterator[None]:
    """No controller runs during the body."""
    with _controllers(release, 0):
        wait_until("no controller is left", lambda: not release.get("pods", "-l", CONTROLLER)["items"], 90)
        yield


@contextmanager
def two_controllers(release: Release) -> Iterator[None]:
    """Two controllers run during the body, and each syncs many times."""
    with _controllers(release, 2):
        pods = release.controllers(2)
        before = [syncs(release, pod) for pod in pods]
        yield
        assert all(syncs(release, pod) > number + 5 for pod, number in zip(pods, before, strict=True))


def syncs(release: Release, controller: Object) -> float:
    return release.metric(controller, "pyrite_controller_sync_seconds_count")


def delete_finished_job(release: Release, run: str, stage: str) -> None:
    """A Job ends and is deleted with its pods before the controller has observed it."""
    with no_controller(release):
        job = wait_until(f"the Job of {stage}", lambda: release.jobs(run, stage), 60)[-1]["metadata"]["name"]
        _wait_complete(release, job, 180)
        kubectl("-n", release.namespace, "delete", "job", job, "--cascade=foreground")
        assert job not in [found["metadata"]["name"] for found in release.items("jobs")]


def _wait_complete(release: Release, job: str, seconds: int) -> None:
    options = [f"job/{job}", "--for=condition=Complete", f"--timeout={seconds}s"]
    kubectl("-n", release.namespace, "wait", *options, seconds=seconds + 20)


def delete_running_job(release: Release, run: str, stage: str) -> None:
    """Delete a running Job, which cannot end before it is terminated."""
    with terminating(release, run, stage):
        job = release.jobs(run, stage)[-1]["metadata"]
        kubectl("-n", release.namespace, "delete", "job", job["name"], "--cascade=foreground", "--wait=false")
    wait_until(
        "the Job is gone", lambda: job["uid"] not in [found["metadata"]["uid"] for found in release.items("jobs")], 60
    )


def upgrade(release: Release, run: str, stage: str) -> None:
    """``helm upgrade`` with new worker settings while a worker runs: its Job and pods stay."""
    with frozen(processes(release.running(run, stage))):
        before, old = _uids(release, run, stage), release.controller()
        release.helm("upgrade", worker={**release.values["worker"], "extraEnv": [{"name": "UPGRADED", "value": "1"}]})
        new = release.controller()
        assert new["metadata"]["uid"] != old["metadata"]["uid"]
        wait_until("the new controller has synced", lambda: syncs(release, new) > 2, 60)
        assert _uids(release, run, stage) == before, "the upgrade removed the Job or its pods"


def _uids(release: Release, run: str, stage: str) -> dict[str, set[str]]:
    found = {"jobs": release.jobs(run, stage), "pods": release.pods(run, stage)}
    return {kind: {one["metadata"]["uid"] for one in objects} for kind, objects in found.items()}


def restart(name: str, down: float) -> None:
    """Kill a component of the cluster itself, and start it again after ``down`` seconds."""
    with without(name):
        time.sleep(down)


@contextmanager
def without(name: str) -> Iterator[None]:
    """Kill a component of the cluster itself, and start it again after the body."""
    process = component(name)
    os.kill(process, signal.SIGKILL)
    try:
        wait_until(f"{name} is dead", lambda: _state(process) == "Z", 20)
        yield
    finally:
        subprocess.run([str(CLUSTER_COMMAND)], check=True, timeout=180)
    assert component(name) != process


def component(name: str) -> int:
    """The process id of a component of the cluster itself."""
    if not CLUSTER_COMMAND.is_file():
        pytest.skip("this cluster's components do not run on this machine")
    return int((Path(os.environ["KUBECONFIG"]).parent / "run" / f"{name}.pid").read_text())


def lose_node(release: Release, run: str, stage: str) -> None:
    """The node is lost and its pod is evicted: the run reports it, and continues when the node is back.

    Kubernetes evicts the pods of a lost node, but not if all nodes are lost. This cluster has one node, so the test
    evicts the pod.
    """
    with terminating(release, run, stage) as pod, without("kubelet"):
        _request_eviction(release, pod)
        name = pod["metadata"]["name"]
        wait_until("the run reports the pod", lambda: name in release.status(run).get("message", ""), 240)


def drain(release: Release, run: str, stage: str) -> None:
    """Drain the node for maintenance, including the controller, and uncordon it."""
    node = json.loads(kubectl("get", "nodes", "-o", "json"))["items"][0]["metadata"]["name"]
    controller = release.controller()
    options = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=150s"]
    selector = "--pod-selector=app.kubernetes.io/name=pyrite"
    try:
        with terminating(release, run, stage):
            draining = subprocess.Popen([program("kubectl"), "drain", node, *options, selector])
        assert draining.wait(200) == 0
        assert not [one for one in release.items("pods") if is_running(one)], "a pod of Pyrite still runs"
    finally:
        kubectl("uncordon", node)
    assert release.controller()["metadata"]["uid"] != controller["metadata"]["uid"]


@contextmanager
def no_s3(release: Release) -> Iterator[None]:
    """The S3 server does not respond during the body."""
    server = subprocess.check_output(["pgrep", "-P", release.environment["PYRITE_S3_PROCESS"]], text=True).split()[0]
    with frozen([int(server)]):
        yield


def stop_s3(release: Release, seconds: float) -> None:
    with no_s3(release):
        time.sleep(seconds)


def stop_s3_as_a_step_ends(release: Release, run: str, stage: str) -> None:
    """S3 does not respond for a minute, just when the controller reads the next step from it.

    The run reports it, and the controller is not restarted.
    """
    before = release.controller()
    with ExitStack() as outage:
        with frozen(processes(before)):  # shorter than the liveness probe's limit: the step takes seconds
            _wait_complete(release, release.jobs(run, stage)[-1]["metadata"]["name"], 40)
            outage.enter_context(no_s3(release))
        ends = time.monotonic() + 60
        wait_until("the run reports the store", lambda: "the store" in release.status(run).get("message", ""), 60)
        time.sleep(max(0.0, ends - time.monotonic()))
    wait_until("the run continues", lambda: release.status(run).get("stage") != stage, 120)
    assert _start(release.controller()) == _start(before)


def _start(pod: Object) -> tuple[str, int]:
    return pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]
