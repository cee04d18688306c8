"""What a person does with TrainingRuns from outside the cluster, with their own kubeconfig."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from pyrite.controller.api import error_message
from pyrite.controller.crd import MOST_CHARACTERS
from pyrite.controller.resource import ENDED, GROUP, PLURAL, VERSION, TrainingRun, parse, to_resource
from pyrite.errors import PyriteError, UserError
from pyrite.spec import RunSpec

_SECONDS = 10
_CONFLICT, _NOT_FOUND, _INVALID, _FORBIDDEN = 409, 404, 422, 403
_PAUSE = 1.0
#: Seconds that the API server may be away while a run is followed.
_PATIENCE = 120.0
#: Seconds after which a run that nobody has looked at is strange.
_LONELY = 20.0


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
                f"no Kubernetes cluster is configured ({error}). Set KUBECONFIG, or leave ON=cluster out to run here."
            ) from None
        self.namespace: str = namespace or context["context"].get("namespace") or "default"
        self._api = client.CustomObjectsApi()

    def submit(self, spec: RunSpec, queue: str | None) -> bool:
        """Create the run; False where the very same one is there already.

        Raises:
            UserError: the name cannot be a Kubernetes name, or another run has it.
        """
        if words := _of_this_machine(spec):
            raise UserError(words)
        manifest = to_resource(spec, queue)
        if "." in spec.name or len(spec.name) > MOST_CHARACTERS:
            raise UserError(
                f"name: {spec.name!r} cannot be a run on a cluster; use up to {MOST_CHARACTERS} letters, digits and "
                "dashes (name=other-name on the command line)."
            )
        try:
            with _explained(self.namespace):
                self._api.create_namespaced_custom_object(
                    GROUP,
                    VERSION,
                    self.namespace,
                    PLURAL,
                    manifest,
                    field_validation="Strict",
                    _request_timeout=_SECONDS,
                )
        except ApiException as error:
            if error.status != _CONFLICT:
                raise
            if self._spec(spec.name) != manifest["spec"]:
                raise UserError(
                    f"namespace {self.namespace} has a run {spec.name} that is described otherwise. Choose another "
                    f"name (name=other-name), edit it (`kubectl edit tr {spec.name}`), or delete it "
                    f"(`kubectl delete tr {spec.name}`: what it made stays in the store)."
                ) from None
            return False
        return True

    def find(self, name: str) -> TrainingRun:
        """The run as it is now.

        Raises:
            UserError: there is none of that name.
        """
        return parse(self._get(name))

    def follow(self, name: str, tell: Callable[[TrainingRun], None], alone: Callable[[], None]) -> TrainingRun:
        """Call ``tell`` for each change of the run's status, until it has ended; the run as it ended.

        ``alone`` is called once where no controller has looked at it for a while.

        Raises:
            UserError: the run is deleted meanwhile.
            PyriteError: the API server is away for too long.
        """
        last: Any = None
        told_alone = False
        began = heard = time.monotonic()
        while True:
            try:
                run = self.find(name)
                heard = time.monotonic()
            except _Away as error:
                if time.monotonic() - heard > _PATIENCE:
                    raise PyriteError(
                        f"{error} The run goes on without us: `pyrite attach {name}` comes back."
                    ) from None
            else:
                if run.status != last:
                    tell(run)
                    last = run.status
                if run.is_alone and not told_alone and time.monotonic() - began > _LONELY:
                    told_alone = True
                    alone()
                if run.status.phase in ENDED and run.status.observed_generation == run.generation:
                    return run
            time.sleep(_PAUSE)

    def _spec(self, name: str) -> Any:
        return self._get(name)["spec"]

    def _get(self, name: str) -> dict[str, Any]:
        with _explained(self.namespace):
            try:
                found: dict[str, Any] = self._api.get_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, name, _request_timeout=_SECONDS
                )
            except ApiException as error:
                if error.status != _NOT_FOUND or "page not found" in str(error.body):
                    raise
                known = self._api.list_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, _request_timeout=_SECONDS
                )
                names = ", ".join(item["metadata"]["name"] for item in known["items"][:20]) or "none"
                raise UserError(f"namespace {self.namespace} has no run {name}; it has: {names}.") from None
        return found


def _of_this_machine(spec: RunSpec) -> str | None:
    """What to say of the first setting that names a file here, which a pod would look for in vain."""
    # Under its own name, by which a model's family is known.
    on_s3 = "Put it on S3 (`aws s3 {copy} {path} s3://bucket/data/{name}`) and say {setting}=s3://bucket/data/{name}."
    mounted = "Name one that a hub or Pyrite has, or have it mounted into the pods and say where it is there."
    retention = spec.evaluate.retention
    named = {
        "source.path": (getattr(spec.source, "path", None), on_s3),
        "source.id": (getattr(spec.source, "id", None) if spec.source.kind == "huggingface" else None, mounted),
        "evaluate.retention.path": (retention.path if retention else None, on_s3),
        "model.base": (spec.model.base, on_s3),
        "judge.prompt": (spec.judge.identity["prompt"], mounted),
        "generate.prompt": (spec.generate.prompt if spec.generate else None, mounted),
    }
    for setting, (path, advice) in named.items():
        if path and Path(path).is_absolute() and Path(path).exists():
            words = f"{setting}: {path} is on this machine, whose files the cluster's pods do not see."
            copy = "cp --recursive" if Path(path).is_dir() else "cp"
            return f"{words} {advice.format(copy=copy, path=path, name=Path(path).name, setting=setting)}"
    return None


class _Away(PyriteError):
    """The API server does not answer."""


@contextmanager
def _explained(namespace: str) -> Iterator[None]:
    try:
        yield
    except HTTPError as error:
        raise _Away(f"the Kubernetes API server does not answer ({type(error).__name__}).") from None
    except ApiException as error:
        if error.status == _CONFLICT:
            raise
        if error.status is None or error.status >= 500:
            raise _Away(f"the Kubernetes API server answers {error.status}.") from None
        words = error_message(error)
        if error.status == _NOT_FOUND:
            raise UserError(
                f"the cluster knows no TrainingRuns in namespace {namespace} ({words}): install the chart first, "
                "`helm install pyrite charts/pyrite`."
            ) from None
        if error.status == _FORBIDDEN:
            raise UserError(f"you may not do this in namespace {namespace}: {words}") from None
        raise UserError(f"the cluster refuses the run: {words}") from None
