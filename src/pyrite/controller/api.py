"""The calls to the Kubernetes API, each with a time limit. Objects are plain dictionaries, as the server has them."""

import json
from collections.abc import Iterable
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from pyrite.controller.manifests import RUN_LABEL
from pyrite.controller.resource import API_VERSION, GROUP, KIND, PLURAL, VERSION, TrainingRun

_SECONDS = 10
_CONFLICT, _NOT_FOUND = 409, 404

#: Kubernetes' own label of a Job's pods.
JOB_LABEL = "batch.kubernetes.io/job-name"

#: Pods or events in one answer: more than a run has at once, and what a turn can hold in memory.
_MOST = 500

Object = dict[str, Any]


class Cluster:
    """One namespace, through a configured ``ApiClient``.

    Raises:
        ApiException, urllib3.exceptions.HTTPError: the server refuses, or does not answer in time.
    """

    def __init__(self, namespace: str, api: client.ApiClient | None = None):
        self.namespace = namespace
        self._core = client.CoreV1Api(api)
        self._custom = client.CustomObjectsApi(api)
        #: Calls made so far.
        self.calls = 0

    def runs(self) -> list[Object]:
        """All TrainingRuns."""
        return self._list(GROUP, VERSION, PLURAL)

    def jobs(self, runs: Iterable[str]) -> list[Object]:
        """The Jobs of ``runs``."""
        return self._list("batch", "v1", "jobs", label_selector=f"{RUN_LABEL} in ({','.join(sorted(runs))})")

    def pods(self, run: str) -> list[Object]:
        """The pods of a run that have not ended."""
        return self._pods(f"{RUN_LABEL}={run}", "status.phase!=Succeeded,status.phase!=Failed")

    def failed_pods(self, job: str) -> list[Object]:
        """The pods of a Job that have failed."""
        return self._pods(f"{JOB_LABEL}={job}", "status.phase=Failed")

    def server_pods(self, instance: str) -> list[Object]:
        """The pods of the vLLM server."""
        return self._pods(f"app.kubernetes.io/instance={instance},app.kubernetes.io/component=vllm", None)

    def events(self, name: str) -> list[Object]:
        """The events of a Job or a pod."""
        self.calls += 1
        answer = self._core.list_namespaced_event(
            self.namespace,
            field_selector=f"involvedObject.name={name}",
            limit=_MOST,
            _preload_content=False,
            _request_timeout=_SECONDS,
        )
        items: list[Object] = json.loads(answer.data)["items"]
        return items

    def server(self, name: str) -> Object | None:
        """A StatefulSet, or None where there is none."""
        self.calls += 1
        try:
            found: Object = self._custom.get_namespaced_custom_object(
                "apps", "v1", self.namespace, "statefulsets", name, _request_timeout=_SECONDS
            )
        except ApiException as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        return found

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
            _request_timeout=_SECONDS,
        )

    def create(self, manifest: Object) -> bool:
        """Create a Job or a ConfigMap; False where it was there already."""
        self.calls += 1
        try:
            if manifest["kind"] == "ConfigMap":
                self._core.create_namespaced_config_map(self.namespace, manifest, _request_timeout=_SECONDS)
            else:
                self._custom.create_namespaced_custom_object(
                    "batch",
                    "v1",
                    self.namespace,
                    "jobs",
                    manifest,
                    field_validation="Strict",
                    _request_timeout=_SECONDS,
                )
        except ApiException as error:
            if error.status == _CONFLICT:
                return False
            raise
        return True

    def delete_job(self, name: str) -> None:
        """Delete a Job after its pods; one that is gone is no error."""
        self.calls += 1
        try:
            self._custom.delete_namespaced_custom_object(
                "batch",
                "v1",
                self.namespace,
                "jobs",
                name,
                propagation_policy="Foreground",
                _request_timeout=_SECONDS,
            )
        except ApiException as error:
            if error.status != _NOT_FOUND:
                raise

    def patch_status(self, run: TrainingRun, status: Object) -> bool:
        """Replace the run's status; False where the run is gone, or not as it was when it was listed."""
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
                _request_timeout=_SECONDS,
            )
        except ApiException as error:
            if error.status not in (_NOT_FOUND, _CONFLICT):
                raise
            return False
        return True

    def record_event(self, run: TrainingRun, kind: str, reason: str, message: str, at: str) -> None:
        """Put an Event beside the run."""
        self.calls += 1
        about = {"apiVersion": API_VERSION, "kind": KIND, "name": run.name, "uid": run.uid, "namespace": self.namespace}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{run.name}-", "namespace": self.namespace},
            "involvedObject": about,
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
            "source": {"component": "pyrite-controller"},
        }
        self._core.create_namespaced_event(self.namespace, event, _request_timeout=_SECONDS)

    def _list(self, group: str, version: str, plural: str, **options: Any) -> list[Object]:
        self.calls += 1
        found = self._custom.list_namespaced_custom_object(
            group, version, self.namespace, plural, _request_timeout=_SECONDS, **options
        )
        items: list[Object] = found["items"]
        return items

    def _pods(self, labels: str, fields: str | None) -> list[Object]:
        self.calls += 1
        answer = self._core.list_namespaced_pod(
            self.namespace,
            label_selector=labels,
            field_selector=fields,
            limit=_MOST,
            _preload_content=False,
            _request_timeout=_SECONDS,
        )
        items: list[Object] = json.loads(answer.data)["items"]
        return items


def error_message(error: ApiException | HTTPError) -> str:
    """What the API server says of a request that it refuses, or what came in place of an answer."""
    if isinstance(error, HTTPError):
        return f"no answer ({type(error).__name__})"
    try:
        return str(json.loads(str(error.body))["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
