"""What the loop sees of the cluster: the API server's own objects, cut down to what is decided on."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pyrite.controller.manifests import DESCRIPTION_LABEL, ITERATION_LABEL, STAGE_LABEL, TEMPLATE_LABEL, needs_gpu
from pyrite.controller.resource import TrainingRun
from pyrite.controller.settings import Settings
from pyrite.errors import UserError
from pyrite.executors.publication import manifests_below
from pyrite.plan import StepState, survey
from pyrite.store import Store

Object = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A Job of a run. ``reason`` and ``message`` say why it failed, in Kubernetes' words; Kueue has one ``queued``.

    ``owner`` is the uid of the run that it was made for: another of the same name may have been deleted since.
    """

    name: str
    stage: str
    iteration: int | None
    description: str
    template: str
    created: datetime
    ended: Literal["Complete", "Failed"] | None
    done: int
    total: int
    gpu: bool
    queued: bool = False
    deleting: bool = False
    reason: str = ""
    message: str = ""
    owner: str = ""


@dataclass(frozen=True)
class Pods:
    """What a run's pods say. ``trouble``: why some do not run; ``running``: whether others do.

    ``unmade``: whether one has been without its containers for long, as where something that it mounts is not there.
    ``left``: a pod that is there though no Job goes: a Job that a person deletes is gone before its pods are.
    """

    trouble: str = ""
    running: bool = False
    unmade: bool = False
    left: str = ""
    #: What the pods of a failed Job said last, by the Job's name.
    last_words: Mapping[str, str] = field(default_factory=dict)

    @property
    def stuck(self) -> str:
        """The trouble, where nothing goes on."""
        return "" if self.running else self.trouble


@dataclass(frozen=True)
class Server:
    """The vLLM server's StatefulSet."""

    replicas: int
    present: int
    ready: int
    trouble: str = ""


@dataclass(frozen=True)
class Stored:
    """What the store holds of a run: where each step stands, and the manifests of the finished ones."""

    states: list[StepState]
    manifests: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """One turn of the loop: the runs as they were found, and what was seen of them by name.

    ``jobs`` has runs that are not settled, ``stored`` those that the store was asked about, ``queued`` those that only
    wait their turn.
    """

    runs: Sequence[TrainingRun]
    jobs: Mapping[str, Sequence[Job]]
    stored: Mapping[str, Stored]
    queued: Set[str]
    server: Server | None
    settings: Settings


def read_job(found: Object) -> Job:
    """A Job as the API server gives it."""
    metadata, spec, status = found["metadata"], found["spec"], found.get("status") or {}
    labels = metadata.get("labels", {})
    ended, reason, message = None, "", ""
    for condition in status.get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            ended = condition["type"]
            reason, message = condition.get("reason", ""), condition.get("message", "")
    iteration = labels.get(ITERATION_LABEL)
    return Job(
        name=metadata["name"],
        stage=labels.get(STAGE_LABEL, ""),
        iteration=None if iteration is None else int(iteration),
        description=labels.get(DESCRIPTION_LABEL, ""),
        template=labels.get(TEMPLATE_LABEL, ""),
        created=read_time(metadata["creationTimestamp"]),
        ended=ended,
        done=status.get("succeeded") or 0,
        total=spec.get("completions") or 1,
        gpu=needs_gpu(found),
        queued=bool(spec.get("suspend")),
        deleting="deletionTimestamp" in metadata,
        reason=reason,
        message=message,
        owner=next((owner["uid"] for owner in metadata.get("ownerReferences") or () if owner.get("controller")), ""),
    )


def read_server(found: Object, trouble: str) -> Server:
    """A StatefulSet as the API server gives it."""
    status = found.get("status") or {}
    return Server(found["spec"]["replicas"], status.get("replicas") or 0, status.get("readyReplicas") or 0, trouble)


def read_stored(store: Store, run: TrainingRun) -> Stored:
    """What ``store`` holds of ``run``, which has a spec.

    Raises:
        PyriteError: the store does not answer.
        UserError: it refuses, or what it holds makes no sense.
    """
    assert run.spec is not None
    place = f"runs/{run.name}"
    try:
        found = manifests_below(store, place)
        return Stored(survey(run.spec, found, {}), found)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"a manifest in {store}/{place}/steps is not as Pyrite writes it ({type(error).__name__}: {error}). "
            "Delete it, and its step is done again."
        ) from None


def read_time(text: str) -> datetime:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(text)
