"""Pods as the API server lists them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from controller.fake_cluster import now
from pyrite.controller.api import JOB_LABEL

AN_HOUR_AGO = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "message": "0/1 nodes.", "lastTransitionTime": AN_HOUR_AGO}
    ],
}


def pod(job: dict[str, Any], status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """A pod of ``job``."""
    labels = {JOB_LABEL: job["metadata"]["name"]}
    return {"metadata": {"name": "pod-1", "labels": labels, **metadata}, "status": status}


def event(reason: str, message: str) -> dict[str, Any]:
    """A recent event."""
    return {"type": "Normal", "reason": reason, "message": message, "lastTimestamp": now()}


def running(since: str) -> dict[str, Any]:
    """The status of a pod whose container has run since a timestamp."""
    return {"phase": "Running", "containerStatuses": [{"state": {"running": {"startedAt": since}}}]}


def waiting(reason: str, previous: str = "") -> dict[str, Any]:
    """The status of a pod that has waited for an hour, with the termination message of its previous start."""
    containers = [{"state": {"waiting": {"reason": reason}}, "lastState": {"terminated": {"message": previous}}}]
    return {"phase": "Pending", "startTime": AN_HOUR_AGO, "containerStatuses": containers}
