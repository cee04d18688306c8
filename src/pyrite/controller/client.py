"""A client for users: submit TrainingRuns and follow them from outside the cluster, with the user's kubeconfig."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from pyrite.controller.api import error_message
from pyrite.controller.crd import MAX_NAME_LENGTH
from pyrite.controller.resource import ENDED, GROUP, PLURAL, VERSION, TrainingRun, parse, to_resource
from pyrite.errors import PyriteError, UserError
from pyrite.spec import RunSpec

_REQUEST_TIMEOUT = 10
_CONFLICT, _NOT_FOUND, _FORBIDDEN = 409, 404, 403
_POLL_INTERVAL = 1.0
#: Seconds without the API server after which following a run ends.
_OUTAGE_TIMEOUT = 120.0
#: Seconds without a status after which the user is warned that no controller may be running.
_UNOBSERVED_WARNING = 20.0


class TrainingRunClient:
    """The TrainingRuns of a namespace.

    Raises:
        UserError: no cluster is configured, or it cannot be reached.
    """

    def __init__(self, namespace: str | None = None):
        try:
            config.load_kube_config()
            _, context = config.list_kube_config_contexts()
        except (config.ConfigException, OSError) as error:
            raise UserError(
                f"no Kubernetes cluster is configured ({error}). Set KUBECONFIG, or use `pyrite train` to run here."
            ) from None
        self.namespace: str = namespace or context["context"].get("namespace") or "default"
        self._api = client.CustomObjectsApi()

    def submit(self, spec: RunSpec, queue: str | None) -> bool:
        """Create the run; False if an identical run exists.

        Raises:
            UserError: the name is not valid or is taken, or a setting names a local file.
        """
        if problem := _local_file(spec):
            raise UserError(problem)
        manifest = to_resource(spec, queue)
        if "." in spec.name or len(spec.name) > MAX_NAME_LENGTH:
            raise UserError(
                f"name: {spec.name!r} cannot be the name of a run on a cluster; use up to {MAX_NAME_LENGTH} letters, "
                "digits and dashes (name=other-name on the command line)."
            )
        try:
            with _user_errors(self.namespace):
                self._api.create_namespaced_custom_object(
                    GROUP,
                    VERSION,
                    self.namespace,
                    PLURAL,
                    manifest,
                    field_validation="Strict",
                    _request_timeout=_REQUEST_TIMEOUT,
                )
        except ApiException as error:
            if error.status != _CONFLICT:
                raise
            if self._get(spec.name)["spec"] != manifest["spec"]:
                raise UserError(
                    f"namespace {self.namespace} already has a run {spec.name} with other settings. Choose another "
                    f"name (name=other-name), edit it (`kubectl edit tr {spec.name}`), or delete it "
                    f"(`kubectl delete tr {spec.name}`; its results stay in the store)."
                ) from None
            return False
        return True

    def find(self, name: str) -> TrainingRun:
        """The current state of a run.

        Raises:
            UserError: there is no run of that name.
        """
        return parse(self._get(name))

    def follow(
        self, name: str, on_change: Callable[[TrainingRun], None], on_unobserved: Callable[[], None]
    ) -> TrainingRun:
        """Call ``on_change`` at each change of the run's status until it ends; returns the ended run.

        ``on_unobserved`` is called once if no controller has observed the run for a while.

        Raises:
            UserError: the run was deleted.
            PyriteError: the API server has not responded for too long.
        """
        last: Any = None
        warned = False
        start = last_response = time.monotonic()
        while True:
            try:
                run = self.find(name)
                last_response = time.monotonic()
            except _Unreachable as error:
                if time.monotonic() - last_response > _OUTAGE_TIMEOUT:
                    raise PyriteError(f"{error} The run continues; follow it with `pyrite attach {name}`.") from None
            else:
                if run.status != last:
                    on_change(run)
                    last = run.status
                if run.is_unobserved and not warned and time.monotonic() - start > _UNOBSERVED_WARNING:
                    warned = True
                    on_unobserved()
                if run.status.phase in ENDED and run.status.observed_generation == run.generation:
                    return run
            time.sleep(_POLL_INTERVAL)

    def _get(self, name: str) -> dict[str, Any]:
        with _user_errors(self.namespace):
            try:
                found: dict[str, Any] = self._api.get_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, name, _request_timeout=_REQUEST_TIMEOUT
                )
            except ApiException as error:
                if error.status != _NOT_FOUND or "page not found" in str(error.body):
                    raise
                runs = self._api.list_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, _request_timeout=_REQUEST_TIMEOUT
                )
                names = ", ".join(item["metadata"]["name"] for item in runs["items"][:20]) or "none"
                raise UserError(f"namespace {self.namespace} has no run {name}; it has: {names}.") from None
        return found


def _local_file(spec: RunSpec) -> str | None:
    """An error message for the first setting that names a local file; None if there is none."""
    # The copy keeps its name, because the name of a model determines its prompts.
    to_s3 = "Copy it to S3 (`aws s3 {copy} {path} s3://bucket/data/{name}`) and set {setting}=s3://bucket/data/{name}."
    to_mount = "Use a hub id or a built-in name, or mount it into the pods and set its path there."
    retention = spec.evaluate.retention
    settings = {
        "source.path": (getattr(spec.source, "path", None), to_s3),
        "source.id": (getattr(spec.source, "id", None) if spec.source.kind == "huggingface" else None, to_mount),
        "evaluate.retention.path": (retention.path if retention else None, to_s3),
        "evaluate.retention.report": (_first_local(retention.report) if retention else None, to_s3),
        "model.base": (spec.model.base, to_s3),
        "judge.prompt": (spec.judge.identity["prompt"], to_mount),
        "judge.confusion": (getattr(spec.judge, "confusion", None), "Mount it into the pods and set its path there."),
        "generate.prompt": (spec.generate.prompt if spec.generate else None, to_mount),
    }
    for setting, (path, advice) in settings.items():
        if path and _is_local(path):
            copy = "cp --recursive" if Path(path).is_dir() else "cp"
            advice = advice.format(copy=copy, path=path, name=Path(path).name, setting=setting)
            return f"{setting}: {path} is a file on this machine, which the cluster's pods cannot read. {advice}"
    return None


def _first_local(paths: list[str]) -> str | None:
    return next((path for path in paths if _is_local(path)), None)


def _is_local(path: str) -> bool:
    return Path(path).is_absolute() and Path(path).exists()


class _Unreachable(PyriteError):
    """The API server does not respond."""


@contextmanager
def _user_errors(namespace: str) -> Iterator[None]:
    """Translate errors of the Kubernetes client to errors for the user. Conflicts pass unchanged."""
    try:
        yield
    except HTTPError as error:
        raise _Unreachable(f"the Kubernetes API server does not respond ({type(error).__name__}).") from None
    except ApiException as error:
        if error.status == _CONFLICT:
            raise
        if error.status is None or error.status >= 500:
            raise _Unreachable(f"the Kubernetes API server responds with status {error.status}.") from None
        message = error_message(error)
        if error.status == _NOT_FOUND:
            raise UserError(
                f"the cluster has no resource TrainingRun or no namespace {namespace} ({message}). Install the chart: "
                "`helm install pyrite charts/pyrite`."
            ) from None
        if error.status == _FORBIDDEN:
            raise UserError(
                f"you have no permission for this in namespace {namespace}: {message}. Ask for a Role that allows it."
            ) from None
        raise UserError(f"the API server rejects the request: {message}") from None
