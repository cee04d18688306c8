"""Why pods do not run: from their status, their events and their termination messages."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from pyrite.controller.api import JOB_LABEL, Cluster, Object
from pyrite.controller.observed import Job, Pods, read_time
from pyrite.controller.resource import TrainingRun

#: A Job usually has its first pod within a second. After this long without one, its events are read.
_NO_POD = timedelta(seconds=30)

#: A pod that still exists this long after its grace period counts as lost: its node does not respond.
_LOST = timedelta(seconds=60)

#: A pod may have to wait until another pod ends. A longer wait is reported.
_UNSCHEDULABLE = timedelta(seconds=20)

#: Containers are usually created within seconds, unless an image is pulled. After this long, events are read.
_CREATING = timedelta(seconds=45)

#: Cluster Autoscaler gives up on a node after 15 minutes. A node usually joins within 5.
_NODE_TIMEOUT = timedelta(minutes=15)

#: Events of Cluster Autoscaler and Karpenter: a node for the pod was requested.
_NODE_REQUESTED = ("TriggeredScaleUp", "Nominated")

_CHECK_IMAGE = "Are the image's name and tag right, and may the node pull it (imagePullSecrets)?"
_HINTS = {
    "ImagePullBackOff": _CHECK_IMAGE,
    "ErrImagePull": _CHECK_IMAGE,
    "ErrImageNeverPull": "The image is not on the node, and imagePullPolicy is Never.",
    "InvalidImageName": "Fix the image's name in the chart's values.",
    "CreateContainerConfigError": "Is there a Secret or ConfigMap of that name in this namespace?",
    "CreateContainerError": "The container cannot be created with the chart's values.",
    "RunContainerError": "The container cannot be started with the chart's values.",
    "CrashLoopBackOff": "The container fails repeatedly: `kubectl logs --previous` shows why.",
}


def diagnose(cluster: Cluster, run: TrainingRun, jobs: Sequence[Job], now: datetime) -> Pods:
    """The state of a run's pods, with the reasons why pods do not run or have failed."""
    active = [job for job in jobs if not job.ended]
    stopped = run.spec is None or run.control.cancel or run.control.suspend
    found = [] if stopped and not active else cluster.pods(run.name)
    if not active:
        failed = [job.name for job in jobs if job.ended == "Failed"]
        return Pods(
            _problem(found, now),
            leftover=min((pod["metadata"]["name"] for pod in found), default=""),
            failures={name: _failure(cluster.failed_pods(name)) for name in failed},
        )
    by_job = {
        job.name: [pod for pod in found if pod["metadata"]["labels"].get(JOB_LABEL) == job.name] for job in active
    }
    pods = [pod for each in by_job.values() for pod in each]
    coming, problem = _waiting(cluster, pods, now)
    for job in active:
        if not by_job[job.name] and not job.queued and not job.done and now - job.created > _NO_POD:
            problem = _pod_creation_refused(job.name, cluster.events(job.name)) or problem
    running = [pod for pod in pods if _is_running(pod)]
    return Pods(
        problem,
        coming,
        running=bool(running),
        running_since=min((start for pod in running for start in _starts(pod)), default=None),
        creating=any(_is_creating(pod, now) for pod in pods),
    )


def diagnose_server(cluster: Cluster, instance: str, stateful_set: str, now: datetime) -> tuple[str, str]:
    """Whether a node for the vLLM server's pods is on its way, and why they are missing or do not run.

    Both are empty if the pods may still be starting.
    """
    found = cluster.server_pods(instance)
    if not found:
        return "", _pod_creation_refused(stateful_set, cluster.events(stateful_set))
    return _waiting(cluster, found, now)


def _waiting(cluster: Cluster, pods: Sequence[Object], now: datetime) -> tuple[str, str]:
    """Whether a node is on its way, and why pods do not run."""
    coming, problem = _node(cluster, pods, now)
    problem = f"{problem} {_problem(pods, now)}".strip()
    return coming, problem or _creation_problem(cluster, pods, now)


def _node(cluster: Cluster, pods: Sequence[Object], now: datetime) -> tuple[str, str]:
    """Whether a node for a pod that cannot be scheduled is on its way, or else why the pod cannot be scheduled.

    Reads the events of one pod only, so that API calls do not grow with shards.
    """
    name, reason = next(
        ((pod["metadata"]["name"], text) for pod in pods if (text := _unschedulable(pod, now))), ("", "")
    )
    if not name:
        return "", ""
    events = [each for each in cluster.events(name) if _is_requested(each) or _is_refused(each)]
    last = max(reversed(events), key=_time, default=None)
    fails = f"pod {name} cannot be scheduled:"
    advice = "Add a node that fits, or change the stage's resources, nodeSelector or tolerations in the chart."
    if last is None:
        return "", f"{fails} {reason} {advice}"
    details = last["message"].rstrip(". ")
    if _is_refused(last):
        return "", f"{fails} {reason} The autoscaler adds no node: {details}. {advice}"
    minutes = (now - _time(last)) // timedelta(minutes=1)
    if now - _time(last) > _NODE_TIMEOUT:
        return "", (
            f"{fails} the autoscaler requested a node {minutes} minutes ago ({details}), but none has joined. Check "
            "the node group's events: often the zone has no such instance, or the quota is exhausted."
        )
    return f"pod {name} waits for a node, which is on its way ({details}).", ""


def _problem(pods: Iterable[Object], now: datetime) -> str:
    """At most two reasons why pods do not run; empty if all run or may still be starting."""
    found = dict.fromkeys(text for pod in pods if (text := _pod_problem(pod, now)))
    return " ".join(list(found)[:2])


def _pod_problem(pod: Object, now: datetime) -> str:
    metadata, status = pod["metadata"], pod.get("status") or {}
    name = metadata["name"]
    if "deletionTimestamp" in metadata:
        if now - read_time(metadata["deletionTimestamp"]) < _LOST:
            return ""
        return (
            f"pod {name} is being deleted but does not end: its node may be lost. If the node is known to be dead, "
            f"`kubectl delete pod {name} --force` lets another pod replace it."
        )
    for waiting in _waiting_states(status):
        reason = waiting.get("reason", "")
        if hint := _HINTS.get(reason):
            previous = _previous_failure(status) if reason == "CrashLoopBackOff" else ""
            details = (previous or waiting.get("message", "")).rstrip(". ")[:200]
            return f"pod {name} does not start: {reason}{f' ({details})' if details else ''}. {hint}"
    return ""


def _unschedulable(pod: Object, now: datetime) -> str:
    """Why the scheduler finds no node for a pod; empty if it has found one or was created only now."""
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            waits = "deletionTimestamp" not in pod["metadata"]
            if waits and now - read_time(condition["lastTransitionTime"]) >= _UNSCHEDULABLE:
                return str(condition.get("message") or condition.get("reason", ""))
    return ""


def _waiting_states(status: Object) -> list[Object]:
    containers = (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
    return [(container.get("state") or {}).get("waiting") or {} for container in containers]


def _previous_failure(status: Object) -> str:
    """The last line of a restarted container's previous termination message."""
    for container in status.get("containerStatuses") or ():
        ended = (container.get("lastState") or {}).get("terminated") or {}
        if lines := (ended.get("message") or "").strip().splitlines():
            return str(lines[-1])
    return ""


def _is_running(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]


def _starts(pod: Object) -> list[datetime]:
    """When the pod's running containers started."""
    states = [container.get("state") or {} for container in (pod.get("status") or {}).get("containerStatuses") or ()]
    return [read_time(state["running"]["startedAt"]) for state in states if "running" in state]


def _is_creating(pod: Object, now: datetime) -> bool:
    """Whether the pod's containers have waited long to be created. Only its events show why."""
    status = pod.get("status") or {}
    if "startTime" not in status or now - read_time(status["startTime"]) < _CREATING:
        return False
    return any(waiting.get("reason") == "ContainerCreating" for waiting in _waiting_states(status))


def _creation_problem(cluster: Cluster, pods: Sequence[Object], now: datetime) -> str:
    """Why containers are not created; empty while an image is pulled.

    Reads the events of one pod only, so that API calls do not grow with shards: all pods wait for the same reason.
    """
    name = next((pod["metadata"]["name"] for pod in pods if _is_creating(pod, now)), None)
    events = cluster.events(name) if name else []
    last = max((event for event in events if event["type"] == "Warning" or _is_pull(event)), key=_time, default=None)
    if last is None or _is_pull(last):
        return ""
    details = last["message"].rstrip(". ")[:300]
    return (
        f"pod {name} does not start: {details}. It starts once that is fixed; "
        f"`kubectl describe pod {name}` shows all events."
    )


def _pod_creation_refused(owner: str, events: Iterable[Object]) -> str:
    """Why no pod of a Job or StatefulSet can be created."""
    last = max((event for event in events if event.get("reason") == "FailedCreate"), key=_time, default=None)
    return f"no pod of {owner} can be created: {last['message']}" if last else ""


def _is_requested(event: Object) -> bool:
    return event.get("reason") in _NODE_REQUESTED


def _is_refused(event: Object) -> bool:
    """Whether an autoscaler reports that it adds no node for the pod."""
    source = (event.get("source") or {}).get("component") or event.get("reportingComponent")
    return event.get("reason") == "NotTriggerScaleUp" or (
        event.get("reason") == "FailedScheduling" and source == "karpenter"
    )


def _is_pull(event: Object) -> bool:
    return event.get("reason") == "Pulling"


def _time(event: Object) -> datetime:
    return read_time(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"])


def _failure(pods: Iterable[Object]) -> str:
    """Why the latest container failed: its termination message, or how it was killed."""
    ended: list[tuple[str, str, Any]] = []
    for pod in pods:
        for container in (pod.get("status") or {}).get("containerStatuses") or ():
            end = (container.get("state") or {}).get("terminated")
            if end and end.get("exitCode"):
                ended.append((end.get("finishedAt") or "", pod["metadata"]["name"], end))
    if not ended:
        return ""
    _, name, end = max(ended, key=lambda entry: entry[:2])
    if end.get("reason") == "OOMKilled":
        return f"pod {name} ran out of memory: raise its stage's resources.limits.memory (worker.stages in the chart)."
    message = (end.get("message") or "").strip()
    return message or f"pod {name} ended with exit code {end['exitCode']} ({end.get('reason', 'Error')}); see its log."
