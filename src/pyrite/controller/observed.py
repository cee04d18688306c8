"""What the controller observes: API objects reduced to the fields that decide what to do next."""

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pyrite.controller.manifests import (
    DEADLINE_ANNOTATION,
    ITERATION_LABEL,
    RUN_CONFIG_LABEL,
    STAGE_LABEL,
    TEMPLATE_LABEL,
    needs_gpu,
)
from pyrite.controller.resource import TrainingRun
from pyrite.controller.settings import Settings
from pyrite.errors import UserError
from pyrite.executors.publication import manifests_below
from pyrite.plan import StepState, probe_key, survey
from pyrite.spec import RunSpec
from pyrite.store import Store

Object = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A Job of a run."""

    name: str
    stage: str
    iteration: int | None
    #: The run config (ConfigMap) that its pods mount, and the digest of its pod template.
    run_config: str
    template: str
    created: datetime
    ended: Literal["Complete", "Failed"] | None
    done: int
    total: int
    gpu: bool
    #: How many seconds a pod may run, unless the chart sets it. Waiting for a node and pulling an image do not count.
    #: None: an older controller created the Job.
    deadline: int | None
    #: Suspended by Kueue until the queue admits it.
    queued: bool = False
    deleting: bool = False
    #: Why it failed, from its condition.
    reason: str = ""
    message: str = ""
    #: The uid of its run: a deleted run may have had the same name.
    owner: str = ""


@dataclass(frozen=True)
class Pods:
    """The state of a run's pods."""

    #: Why at least one pod does not run.
    problem: str = ""
    #: That a pod waits for a node that an autoscaler is adding. This is not a problem.
    coming: str = ""
    #: Whether at least one pod runs, and the earliest start of their containers.
    running: bool = False
    running_since: datetime | None = None
    #: Whether a pod has waited long for its containers to be created, e.g. because a volume is missing.
    creating: bool = False
    #: A pod that still exists though no Job is active: `kubectl delete job` removes the Job before its pods.
    leftover: str = ""
    #: Why the pods of failed Jobs failed, by the Job's name.
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def blocked(self) -> str:
        """The problem, if no pod runs."""
        return "" if self.running else self.problem


@dataclass(frozen=True)
class Server:
    """The vLLM server's StatefulSet: replicas wanted, present and ready, and why some are not ready.

    ``coming`` and ``problem`` are as in Pods.
    """

    replicas: int
    present: int
    ready: int
    coming: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Stored:
    """A run in the store.

    Attributes:
        states: the state of each step.
        manifests: those of finished steps, by step name.
        probe: the content of probe.json, if it is about the run's present judge.
    """

    states: list[StepState]
    manifests: dict[str, Any]
    probe: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Observed:
    """The input of ``reconcile``: the state of one run, and of the other runs that share its GPUs."""

    jobs: Sequence[Job]
    pods: Pods = field(default_factory=Pods)
    #: None if the store was not read, because ``needs_store`` is false.
    stored: Stored | None = None
    server: Server | None = None
    #: Other runs that use the vLLM server or wait for it.
    server_users: Set[str] = frozenset()
    #: Other runs whose Jobs claim GPUs.
    gpu_users: Set[str] = frozenset()


@dataclass(frozen=True)
class Snapshot:
    """All runs as one sync found them.

    ``stored`` has, by run name, those whose steps were read from the store; ``queued`` those that wait for GPUs or for
    Kueue.
    """

    runs: Sequence[TrainingRun]
    stored: Mapping[str, Stored]
    queued: Set[str]
    server: Server | None
    settings: Settings


def read_job(found: Object) -> Job:
    """A Job from the API server's object."""
    metadata, spec, status = found["metadata"], found["spec"], found.get("status") or {}
    labels = metadata.get("labels", {})
    ended, reason, message = None, "", ""
    for condition in status.get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            ended = condition["type"]
            reason, message = condition.get("reason", ""), condition.get("message", "")
    iteration = labels.get(ITERATION_LABEL)
    deadline = (metadata.get("annotations") or {}).get(DEADLINE_ANNOTATION)
    return Job(
        name=metadata["name"],
        stage=labels.get(STAGE_LABEL, ""),
        iteration=None if iteration is None else int(iteration),
        run_config=labels.get(RUN_CONFIG_LABEL, ""),
        template=labels.get(TEMPLATE_LABEL, ""),
        created=read_time(metadata["creationTimestamp"]),
        ended=ended,
        done=status.get("succeeded") or 0,
        total=spec.get("completions") or 1,
        gpu=needs_gpu(found),
        deadline=int(deadline) if deadline else None,
        queued=bool(spec.get("suspend")),
        deleting="deletionTimestamp" in metadata,
        reason=reason,
        message=message,
        owner=next((owner["uid"] for owner in metadata.get("ownerReferences") or () if owner.get("controller")), ""),
    )


def read_server(found: Object) -> Server:
    """The vLLM server from its StatefulSet."""
    status = found.get("status") or {}
    return Server(found["spec"]["replicas"], status.get("replicas") or 0, status.get("readyReplicas") or 0)


def read_stored(store: Store, run: TrainingRun) -> Stored:
    """Read the steps of ``run``, which has a spec, from the store.

    Raises:
        PyriteError: the store does not respond.
        UserError: the store refuses the request, or a manifest is not valid.
    """
    assert run.spec is not None
    folder = f"runs/{run.name}"
    try:
        found = manifests_below(store, folder)
        states = survey(run.spec, found, {})
        done = {state.step.name: found[state.step.name] for state in states if state.state == "done"}
        return Stored(states, done, _read_probe(store, run.spec))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{store}/{folder}: a manifest in steps, or probe/probe.json, is not valid ({type(error).__name__}: "
            f"{error}). Delete it to run its step again."
        ) from None


def _read_probe(store: Store, spec: RunSpec) -> dict[str, Any] | None:
    """The run's probe. None if there is none, or none that the present judge's settings belong to."""
    key = f"runs/{spec.name}/probe/probe.json"
    found: dict[str, Any] | None = json.loads(store.read(key)) if store.exists(key) else None
    return found if found and found.get("key") == probe_key(spec) else None


def read_time(text: str) -> datetime:
    """A Kubernetes timestamp."""
    return datetime.fromisoformat(text)
