"""A client for users: submit TrainingRuns and follow them from outside the cluster, with the user's kubeconfig."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from pyrite.controller.api import IF_UNREACHABLE, error_message
from pyrite.controller.crd import MAX_NAME_LENGTH
from pyrite.controller.resource import ENDED, GROUP, PLURAL, VERSION, Control, TrainingRun, parse, to_resource
from pyrite.errors import PyriteError, UserError
from pyrite.spec import RunSpec

_REQUEST_TIMEOUT = 10
_CONFLICT, _NOT_FOUND, _FORBIDDEN = 409, 404, 403
_POLL_INTERVAL = 1.0
#: Seconds without the API server after which following a run ends.
_OUTAGE_TIMEOUT = 120.0
#: Seconds without a status after which the user is warned that no controller may be running.
_UNOBSERVED_WARNING = 20.0


def load_context(alternative: str) -> dict[str, Any]:
    """Configure the Kubernetes client from the kubeconfig file. Returns the current context's content.

    Args:
        alternative: what a user without a cluster can do, for the error.

    Raises:
        UserError: there is no valid kubeconfig file.
    """
    try:
        config.load_kube_config()
        return dict(config.list_kube_config_contexts()[1]["context"])
    except (config.ConfigException, OSError) as error:
        raise UserError(f"no Kubernetes cluster is configured ({error}). Set KUBECONFIG, or {alternative}.") from None
    except (yaml.YAMLError, AttributeError, TypeError, KeyError):
        raise UserError(
            f"the kubeconfig is not valid. Correct the file in KUBECONFIG or ~/.kube/config, or {alternative}."
        ) from None


class TrainingRunClient:
    """The TrainingRuns of a namespace.

    Raises:
        UserError: no cluster is configured, or it cannot be reached.
    """

    def __init__(self, namespace: str | None = None):
        context = load_context("use `pyrite train` to run here")
        self.namespace: str = namespace or context.get("namespace") or "default"
        self._api = client.CustomObjectsApi()
        self._responded = False  # once it has, `follow` waits through an outage

    def submit(self, spec: RunSpec, control: Control) -> bool:
        """Create the run. If an identical run exists, set its ``until`` and ``force``, and return False.

        Raises:
            UserError: the name is not valid or is taken, or a setting names a local file.
        """
        if problem := _local_file(spec):
            raise UserError(problem)
        manifest = to_resource(spec, control)
        if "." in spec.name or len(spec.name) > MAX_NAME_LENGTH:
            raise UserError(
                f"name: {spec.name!r} cannot be the name of a run on a cluster; use up to {MAX_NAME_LENGTH} letters, "
                "digits and dashes (name=other-name on the command line)."
            )
        try:
            with self._request():
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
            wanted = {"until": control.until, "force": control.force or None}
            found = self._get(spec.name)["spec"]
            if _settings(found) != _settings(manifest["spec"]):
                raise UserError(
                    f"namespace {self.namespace} already has a run {spec.name} with other settings. Choose another "
                    f"name (name=other-name), edit it (`kubectl edit tr {spec.name}`), or delete it "
                    f"(`kubectl delete tr {spec.name}`; its results stay in the store)."
                ) from None
            if wanted != {name: found.get(name) for name in wanted}:
                self._patch(spec.name, wanted)
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
            PyriteError: the API server has never responded, or not for too long.
        """
        last: Any = None
        warned = False
        start = last_response = time.monotonic()
        while True:
            try:
                run = self.find(name)
                last_response = time.monotonic()
            except _Unreachable as error:
                if not self._responded:
                    raise
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

    def _patch(self, name: str, changes: dict[str, Any]) -> None:
        with self._request():
            self._api.patch_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                name,
                {"spec": changes},
                _content_type="application/merge-patch+json",
                _request_timeout=_REQUEST_TIMEOUT,
            )

    @contextmanager
    def _request(self) -> Iterator[None]:
        with _user_errors(self.namespace):
            yield
        self._responded = True

    def _get(self, name: str) -> dict[str, Any]:
        with self._request():
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


def _settings(spec: dict[str, Any]) -> dict[str, Any]:
    """The settings of the run, without the fields that control it, such as retry, which a user may have edited."""
    return {name: value for name, value in spec.items() if name not in Control.model_fields}


def _local_file(spec: RunSpec) -> str | None:
    """An error message for the first setting that names a local file; None if there is none."""
    # The copy keeps its name, because the name of a model determines its prompts.
    to_s3 = "Copy it to S3 (`aws s3 {copy} {path} s3://bucket/data/{name}`) and set {setting}=s3://bucket/data/{name}."
    mount = "Mount it into the pods and set its path there."
    to_mount = f"Use a hub id or a built-in name, or m{mount[1:]}"
    retention = spec.evaluate.retention
    settings = {
        "source.path": (getattr(spec.source, "path", None), to_s3),
        "source.id": (getattr(spec.source, "id", None) if spec.source.kind == "huggingface" else None, to_mount),
        "evaluate.retention.path": (retention.path if retention else None, to_s3),
        "evaluate.retention.report": (_first_local(retention.report) if retention else None, to_s3),
        "model.base": (spec.model.base, to_s3),
        **{
            f"{judge.section}.{file}": (getattr(judge.spec, file, None), to_mount if file == "prompt" else mount)
            for judge in (spec.first_judge, spec.main_judge, spec.evaluation_judge)
            if judge
            for file in ("prompt", "confusion", "calibration")
        },
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
        raise _Unreachable(f"the Kubernetes API: {error_message(error)}. {IF_UNREACHABLE}") from None
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
