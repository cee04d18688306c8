"""Calls to the Kubernetes API, each with a timeout. Objects are plain dictionaries in the API's own format."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from pyrite.controller.manifests import RUN_LABEL
from pyrite.controller.resource import API_VERSION, GROUP, KIND, PLURAL, VERSION, TrainingRun

_TIMEOUT = 10
_CONFLICT, _NOT_FOUND = 409, 404

#: The label that Kubernetes sets on a Job's pods.
JOB_LABEL = "batch.kubernetes.io/job-name"

#: What a user can do if the API server does not respond, for example after `make eks-down`.
IF_UNREACHABLE = (
    "Check `kubectl get nodes`. If the cluster was deleted, select another: `kubectl config use-context NAME`."
)

#: Maximum pods or events per response: more than a run has at once, and small enough to hold in memory.
_LIMIT = 500

Object = dict[str, Any]


class Cluster:
    """The Kubernetes API for one namespace. ``api`` is a configured client.

    Raises:
        ApiException, urllib3.exceptions.HTTPError: the server refuses, or does not respond in time.
    """

    def __init__(self, namespace: str, api: client.ApiClient | None = None):
        self.namespace = namespace
        self._core = client.CoreV1Api(api)
        self._custom = client.CustomObjectsApi(api)
        self.calls = 0

    def runs(self) -> list[Object]:
        """All TrainingRuns."""
        return self._list(GROUP, VERSION, PLURAL)

    def jobs(self, runs: Iterable[str]) -> list[Object]:
        """The Jobs of ``runs``."""
        return self._list("batch", "v1", "jobs", label_selector=f"{RUN_LABEL} in ({','.join(sorted(runs))})")

    def pods(self, run: str) -> list[Object]:
        """The pods of a run that have not succeeded or failed."""
        return self._pods(f"{RUN_LABEL}={run}", field_selector="status.phase!=Succeeded,status.phase!=Failed")

    def failed_pods(self, job: str) -> list[Object]:
        """The pods of a Job that have failed."""
        return self._pods(f"{JOB_LABEL}={job}", field_selector="status.phase=Failed")

    def server_pods(self, instance: str) -> list[Object]:
        """The pods of the vLLM server."""
        return self._pods(f"app.kubernetes.io/instance={instance},app.kubernetes.io/component=vllm")

    def events(self, name: str) -> list[Object]:
        """The events of a Job or a pod."""
        return self._list_core(self._core.list_namespaced_event, field_selector=f"involvedObject.name={name}")

    def server(self, name: str) -> Object | None:
        """A StatefulSet, or None if it does not exist."""
        return self._get("apps", "statefulsets", name)

    def scale(self, name: str, replicas: int) -> None:
        """Set a StatefulSet's replicas."""
        self.calls += 1
        self._custom.patch_namespaced_custom_object_scale(
            "apps",
            "v1",
            self.namespace,
            "statefulsets",
            name,
            {"spec": {"replicas": replicas}},
            _content_type="application/merge-patch+json",
            _request_timeout=_TIMEOUT,
        )

    def renew_lease(self, name: str, now: datetime) -> None:
        """Set a Lease's renewTime."""
        self.calls += 1
        self._custom.patch_namespaced_custom_object(
            "coordination.k8s.io",
            "v1",
            self.namespace,
            "leases",
            name,
            {"spec": {"renewTime": now.isoformat(timespec="microseconds").replace("+00:00", "Z")}},
            _content_type="application/merge-patch+json",
            _request_timeout=_TIMEOUT,
        )

    def lease(self, name: str) -> datetime | None:
        """When a Lease was last renewed, or else created; None if it does not exist."""
        found = self._get("coordination.k8s.io", "leases", name)
        if found is None:
            return None
        return datetime.fromisoformat(found["spec"].get("renewTime") or found["metadata"]["creationTimestamp"])

    def create(self, manifest: Object) -> bool:
        """Create a Job or a ConfigMap; False if it exists already."""
        self.calls += 1
        try:
            if manifest["kind"] == "ConfigMap":
                self._core.create_namespaced_config_map(self.namespace, manifest, _request_timeout=_TIMEOUT)
            else:
                self._custom.create_namespaced_custom_object(
                    "batch",
                    "v1",
                    self.namespace,
                    "jobs",
                    manifest,
                    field_validation="Strict",
                    _request_timeout=_TIMEOUT,
                )
        except ApiException as error:
            if error.status == _CONFLICT:
                return False
            raise
        return True

    def delete_job(self, name: str) -> None:
        """Delete a Job once its pods are gone. A Job that does not exist is no error."""
        self.calls += 1
        with _unless_missing():
            self._custom.delete_namespaced_custom_object(
                "batch",
                "v1",
                self.namespace,
                "jobs",
                name,
                propagation_policy="Foreground",
                _request_timeout=_TIMEOUT,
            )

    def expire_job(self, name: str) -> None:
        """Set a deadline that has passed, so that Kubernetes fails a running Job. Others stay as they are."""
        self.calls += 1
        with _unless_missing():
            self._custom.patch_namespaced_custom_object(
                "batch",
                "v1",
                self.namespace,
                "jobs",
                name,
                {"spec": {"activeDeadlineSeconds": 1}},
                _content_type="application/merge-patch+json",
                _request_timeout=_TIMEOUT,
            )

    def patch_status(self, run: TrainingRun, status: Object) -> bool:
        """Replace the run's status; False if the run is gone or has changed since it was listed."""
        self.calls += 1
        try:
            self._custom.patch_namespaced_custom_object_status(
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                run.name,
                {"metadata": {"resourceVersion": run.version}, "status": status},
                _content_type="application/merge-patch+json",
                _request_timeout=_TIMEOUT,
            )
        except ApiException as error:
            if error.status not in (_NOT_FOUND, _CONFLICT):
                raise
            return False
        return True

    def record_event(self, run: TrainingRun, kind: str, reason: str, message: str, at: str) -> None:
        """Record an Event of the run."""
        self.calls += 1
        involved = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": run.name,
            "uid": run.uid,
            "namespace": self.namespace,
        }
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{run.name}-", "namespace": self.namespace},
            "involvedObject": involved,
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
            "source": {"component": "pyrite-controller"},
        }
        self._core.create_namespaced_event(self.namespace, event, _request_timeout=_TIMEOUT)

    def _get(self, group: str, plural: str, name: str) -> Object | None:
        self.calls += 1
        try:
            found: Object = self._custom.get_namespaced_custom_object(
                group, "v1", self.namespace, plural, name, _request_timeout=_TIMEOUT
            )
        except ApiException as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        return found

    def _list(self, group: str, version: str, plural: str, **options: Any) -> list[Object]:
        self.calls += 1
        found = self._custom.list_namespaced_custom_object(
            group, version, self.namespace, plural, _request_timeout=_TIMEOUT, **options
        )
        items: list[Object] = found["items"]
        return items

    def _pods(self, labels: str, **selectors: str) -> list[Object]:
        return self._list_core(self._core.list_namespaced_pod, label_selector=labels, **selectors)

    def _list_core(self, method: Callable[..., Any], **selectors: str) -> list[Object]:
        """A list as plain dictionaries, not as the client's models."""
        self.calls += 1
        options = {"limit": _LIMIT, "_preload_content": False, "_request_timeout": _TIMEOUT}
        items: list[Object] = json.loads(method(self.namespace, **selectors, **options).data)["items"]
        return items


@contextmanager
def _unless_missing() -> Iterator[None]:
    """Ignore that an object no longer exists."""
    try:
        yield
    except ApiException as error:
        if error.status != _NOT_FOUND:
            raise


def error_message(error: ApiException | HTTPError) -> str:
    """Why a request failed: the API server's own message, or that there was no response."""
    if isinstance(error, HTTPError):
        cause = getattr(error, "reason", None) or error
        return f"no response from {client.Configuration.get_default_copy().host} ({type(cause).__name__})"
    try:
        return str(json.loads(str(error.body))["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
