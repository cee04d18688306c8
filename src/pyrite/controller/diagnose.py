"""What pods and their events say, in words that a person can act on. Pure."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from pyrite.controller.observed import read_time

#: A pod that is told to stop has its grace period; this much later it is its node that does not answer.
_LOST = timedelta(seconds=60)

#: On a full node a pod's turn comes when another ends; one that waits longer is told of.
_FULL = timedelta(seconds=20)

#: A pod whose volumes and network are there has its containers within seconds, unless the image is pulled.
_UNMADE = timedelta(seconds=45)

_WAITING = {
    "ImagePullBackOff": "Is the image's name and tag right, and may the node pull it (imagePullSecrets)?",
    "ErrImagePull": "Is the image's name and tag right, and may the node pull it (imagePullSecrets)?",
    "ErrImageNeverPull": "The image is not on the node, and imagePullPolicy is Never.",
    "InvalidImageName": "Mend the image's name in the chart's values.",
    "CreateContainerConfigError": "Is there a Secret or ConfigMap of that name in this namespace?",
    "CreateContainerError": "The container cannot be made as the chart's values have it.",
    "RunContainerError": "The container cannot be started as the chart's values have it.",
    "CrashLoopBackOff": "It ends again and again: `kubectl logs --previous` says why.",
}


def trouble(pods: Iterable[dict[str, Any]], now: datetime) -> str:
    """Why a pod does not run, or nothing where all that do not run have just been made."""
    found = dict.fromkeys(text for pod in pods if (text := _stuck(pod, now)))
    return " ".join(list(found)[:2])


def _stuck(pod: dict[str, Any], now: datetime) -> str:
    metadata, status = pod["metadata"], pod.get("status") or {}
    name = metadata["name"]
    if "deletionTimestamp" in metadata:
        if now - read_time(metadata["deletionTimestamp"]) < _LOST:
            return ""
        return (
            f"pod {name} was told to stop and does not end: its node may be lost. "
            f"`kubectl delete pod {name} --force` lets another take its place, once the node is known to be dead."
        )
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            if now - read_time(condition["lastTransitionTime"]) < _FULL:
                return ""
            return (
                f"pod {name} finds no node: {condition.get('message', condition.get('reason', ''))} "
                "Add a node that fits, or change the stage's resources, nodeSelector or tolerations in the chart."
            )
    for waiting in _waiting(status):
        reason = waiting.get("reason", "")
        if hint := _WAITING.get(reason):
            before = _before(status) if reason == "CrashLoopBackOff" else ""
            said = (before or waiting.get("message", "")).rstrip(". ")[:200]
            return f"pod {name} does not start: {reason}{f' ({said})' if said else ''}. {hint}"
    return ""


def _waiting(status: dict[str, Any]) -> list[dict[str, Any]]:
    containers = (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
    return [(container.get("state") or {}).get("waiting") or {} for container in containers]


def _before(status: dict[str, Any]) -> str:
    """What a container that ends again and again said when it last did: the last line of it."""
    for container in status.get("containerStatuses") or ():
        ended = (container.get("lastState") or {}).get("terminated") or {}
        if lines := (ended.get("message") or "").strip().splitlines():
            return str(lines[-1])
    return ""


def is_running(pod: dict[str, Any]) -> bool:
    """Whether it is at work, and not told to stop."""
    return (pod.get("status") or {}).get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]


def is_unmade(pod: dict[str, Any], now: datetime) -> bool:
    """Whether its node has not made its containers for long; only its events say why."""
    status = pod.get("status") or {}
    if "startTime" not in status or now - read_time(status["startTime"]) < _UNMADE:
        return False
    return any(waiting.get("reason") == "ContainerCreating" for waiting in _waiting(status))


def not_made(pod: str, events: Iterable[dict[str, Any]]) -> str:
    """Why ``pod`` has no containers yet; nothing where its image is being pulled."""
    last = max((event for event in events if event["type"] == "Warning" or _pulls(event)), key=_when, default=None)
    if last is None or _pulls(last):
        return ""
    said = last["message"].rstrip(". ")[:300]
    return f"pod {pod} does not start: {said}. It will, once that is there; `kubectl describe pod {pod}` has the rest."


def refused(job: str, events: Iterable[dict[str, Any]]) -> str:
    """Why no pod of ``job``, or of a StatefulSet, can be made."""
    last = max((event for event in events if event.get("reason") == "FailedCreate"), key=_when, default=None)
    return f"no pod of {job} can be made: {last['message']}" if last else ""


def _pulls(event: dict[str, Any]) -> bool:
    return event.get("reason") == "Pulling"


def _when(event: dict[str, Any]) -> datetime:
    return read_time(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"])


def last_words(pods: Iterable[dict[str, Any]]) -> str:
    """What the container said that failed last: its termination message, or how it was killed."""
    ended = []
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
    said = (end.get("message") or "").strip()
    return said or f"pod {name} ended with exit code {end['exitCode']} ({end.get('reason', 'Error')}); see its log."
