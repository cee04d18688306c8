"""A TrainingRun: a RunSpec as a Kubernetes resource, what a person steers it by, and the status that is shown."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from pyrite.config import problems
from pyrite.errors import UserError
from pyrite.spec import RunSpec, Section

GROUP, VERSION, PLURAL, KIND = "pyrite.dev", "v1alpha1", "trainingruns", "TrainingRun"
API_VERSION = f"{GROUP}/{VERSION}"

Phase = Literal["Pending", "Waiting", "Running", "Suspended", "Succeeded", "Failed", "Cancelled"]

#: Phases that only an edit of the resource ends.
ENDED: tuple[Phase, ...] = ("Succeeded", "Failed", "Cancelled")


class Control(Section):
    """How a person steers a run that is there. Beside the RunSpec's own fields in ``spec``."""

    suspend: bool = Field(default=False, description="true: stop after putting work away; false again: go on")
    cancel: bool = Field(default=False, description="true: stop for good; what is finished stays in the store")
    retry: int = Field(default=0, ge=0, description="raise it to try again after a failure that you have mended")
    queue: str | None = Field(default=None, description="Kueue's LocalQueue that the Jobs are put in; unset: none")


class Camel(Section):
    """Its fields are written in camelCase, as Kubernetes writes them."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class Condition(Camel):
    """One of Kubernetes' own conditions."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    last_transition_time: str
    observed_generation: int


class Shards(Camel):
    """How far the step is that runs now."""

    done: int
    total: int


class Score(Camel):
    """Validation scores of one model."""

    model: str = Field(description="base, iteration-2, or iteration-2@0.6 for a blend with the base")
    mrr: float = Field(description="MRR@5 on the validation queries")
    dcg: float = Field(description="DCG@5 on the validation queries")


class Status(Camel):
    """What is shown of a run. Its size does not grow with the run's."""

    phase: Phase = "Pending"
    message: str = Field(default="", description="what goes on or went wrong, and what to do about it")
    observed_generation: int = 0
    step: str = Field(default="", description="the step that runs or is next, e.g. judge, iteration 1")
    stage: str | None = None
    iteration: int | None = None
    shards: Shards | None = None
    progress: str = Field(default="", description="steps done of all steps, and shards done of the step's")
    job: str = Field(default="", description="the Job of the step; `kubectl logs job/...` reads it")
    scores: list[Score] = Field(default=[], description="the base's, the best iteration's and the latest ones'")
    best: str = Field(default="", description="the model that is ahead on validation; at the end the chosen one")
    best_mrr: str = Field(default="", description="its MRR@5, and the change against the base")
    gate_passed: bool | None = Field(default=None, description="whether the gain on test meets evaluate.gate")
    model_uri: str = ""
    report_uri: str = ""
    cost: str = Field(default="", description="dollars so far: hours of its steps times cost.dollarsPerHour")
    started: str | None = None
    finished: str | None = None
    conditions: list[Condition] = Field(default=[])


@dataclass(frozen=True)
class TrainingRun:
    """A resource as read. ``spec`` is None where it is no RunSpec; ``wrong`` then says why."""

    name: str
    uid: str
    generation: int
    created: str
    #: Changes with each change of the resource, and no two runs have the same.
    version: str
    control: Control
    status: Status
    spec: RunSpec | None = None
    wrong: str = ""

    @property
    def is_alone(self) -> bool:
        """Whether no controller has looked at it yet."""
        return not self.status.observed_generation and not self.status.message


def parse(found: dict[str, Any]) -> TrainingRun:
    """A resource as the API server gives it."""
    metadata, content = found["metadata"], dict(found.get("spec") or {})
    control = {key: content.pop(key) for key in Control.model_fields if key in content}
    spec, wrong = None, ""
    try:
        steering = Control.model_validate(control)
        spec = to_spec(metadata["name"], content)
    except (ValidationError, UserError) as error:
        steering, wrong = Control(), str(error)
    try:
        status = Status.model_validate(found.get("status") or {})
    except ValidationError:
        status = Status()  # another version's: it is made anew
    return TrainingRun(
        metadata["name"],
        metadata["uid"],
        metadata["generation"],
        metadata["creationTimestamp"],
        metadata["resourceVersion"],
        steering,
        status,
        spec,
        wrong,
    )


def to_spec(name: str, content: dict[str, Any]) -> RunSpec:
    """The RunSpec of a resource's ``spec`` (without its Control).

    Raises:
        UserError: it is none.
    """
    try:
        return RunSpec.model_validate({**content, "name": name})
    except ValidationError as error:
        raise UserError(" ".join(text for _, text in problems(error))) from None


def to_resource(spec: RunSpec, queue: str | None = None) -> dict[str, Any]:
    """The resource of a RunSpec: what was set alone, so that defaults stay the controller's."""
    content = spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"name"})
    if queue:
        content["queue"] = queue
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": spec.name}, "spec": content}
