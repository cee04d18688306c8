"""The TrainingRun resource: a RunSpec, the fields that control it, and its status."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from pyrite.config import problems
from pyrite.errors import UserError
from pyrite.spec import RunSpec, Section

GROUP, VERSION, PLURAL, KIND = "pyrite.dev", "v1alpha1", "trainingruns", "TrainingRun"
API_VERSION = f"{GROUP}/{VERSION}"

Phase = Literal["Pending", "Waiting", "Running", "Suspended", "Probed", "Succeeded", "Failed", "Cancelled"]

#: Phases that a run leaves only when the resource is edited.
ENDED: tuple[Phase, ...] = ("Probed", "Succeeded", "Failed", "Cancelled")


class Control(Section):
    """Fields of ``spec`` that control a run, in addition to the RunSpec's own."""

    suspend: bool = Field(default=False, description="true: save work and stop; false again: resume")
    cancel: bool = Field(default=False, description="true: stop for good; finished steps stay in the store")
    retry: int = Field(default=0, ge=0, description="increase it to retry after you have fixed the cause of a failure")
    queue: str | None = Field(default=None, description="Kueue LocalQueue for the Jobs; unset: none")
    until: Literal["probe"] | None = Field(
        default=None,
        description="probe: prepare the run, check the judge with `pyrite probe`, and stop; unset: run to the end, "
        "from there. To probe again, increase retry",
    )
    force: bool = Field(default=False, description="true: use the judge although it failed its probe")
    budget_dollars: float | None = Field(default=None, gt=0, description="unset: the chart's cost.budgetDollars")


class Camel(Section):
    """A section with camelCase field names, as in Kubernetes."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class Condition(Camel):
    """A Kubernetes condition."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    last_transition_time: str
    observed_generation: int


class Shards(Camel):
    """Progress of the current step."""

    done: int
    total: int


class Score(Camel):
    """Validation scores of one model."""

    model: str = Field(description="base, iteration-2, or iteration-2@0.6 for a blend with the base")
    mrr: float = Field(description="MRR@5 on the validation queries")
    dcg: float = Field(description="DCG@5 on the validation queries")


class ProbeResult(Camel):
    """The result of the run's last probe, if it is about the run's present judge."""

    verdict: Literal["go", "no-go", "unclear"] = Field(description="unclear: the sample was too small")
    failed: str = Field(default="", description="the failed checks")
    page_uri: str = Field(description="a page with judgments to read")
    finished: str
    retry: int = Field(description="spec.retry when it was first seen")


class Status(Camel):
    """The status of a run. Its size does not depend on the number of iterations or shards."""

    phase: Phase = "Pending"
    message: str = Field(default="", description="what happens or what failed, and what to do about it")
    observed_generation: int = 0
    step: str = Field(default="", description="the current or next step, e.g. judge, iteration 1")
    stage: str | None = None
    iteration: int | None = None
    shards: Shards | None = None
    progress: str = Field(default="", description="finished/total steps (finished/total shards of the current step)")
    job: str = Field(default="", description="the Job of the current step, for `kubectl logs job/NAME`")
    scores: list[Score] = Field(default=[], description="of the base, the best and the latest iterations")
    best: str = Field(default="", description="the best model on validation; after evaluate, the chosen one")
    best_mrr: str = Field(default="", description="MRR@5 of the best model, and its relative gain over the base")
    probe: ProbeResult | None = None
    gate_passed: bool | None = Field(default=None, description="whether the gain on test meets evaluate.gate")
    model_uri: str = ""
    report_uri: str = ""
    cost: str = Field(default="", description="hours that the run has used nodes, at its last change, times the price")
    hours: float = Field(default=0.0, description="hours that the run has used nodes, until activeSince")
    active_since: str | None = Field(default=None, description="since when it uses nodes; null: it uses none")
    over_budget: str = Field(default="", description="that the estimated cost exceeds the budget, and what to do")
    started: str | None = None
    finished: str | None = None
    conditions: list[Condition] = Field(default=[])


@dataclass(frozen=True)
class TrainingRun:
    """A resource as read. If its spec is not valid, ``spec`` is None and ``error`` is the message for the user."""

    name: str
    uid: str
    generation: int
    created: str
    #: The resourceVersion, which differs after each change.
    version: str
    control: Control
    status: Status
    spec: RunSpec | None = None
    error: str = ""

    @property
    def is_unobserved(self) -> bool:
        """Whether no controller has observed it yet."""
        return not self.status.observed_generation and not self.status.message


def parse(found: dict[str, Any]) -> TrainingRun:
    """A TrainingRun from the API server's object."""
    metadata, content = found["metadata"], dict(found.get("spec") or {})
    fields = {key: content.pop(key) for key in Control.model_fields if key in content}
    control, spec, problem = Control(), None, ""
    try:
        control = Control.model_validate(fields)
        spec = to_spec(metadata["name"], content)
    except (ValidationError, UserError) as error:
        control, problem = Control(), str(error)
    try:
        status = Status.model_validate(found.get("status") or {})
    except ValidationError:
        status = Status()  # written by another version; the next sync replaces it
    return TrainingRun(
        metadata["name"],
        metadata["uid"],
        metadata["generation"],
        metadata["creationTimestamp"],
        metadata["resourceVersion"],
        control,
        status,
        spec,
        problem,
    )


def to_spec(name: str, content: dict[str, Any]) -> RunSpec:
    """The RunSpec of a resource's ``spec`` (without its Control).

    Raises:
        UserError: it is not valid.
    """
    try:
        return RunSpec.model_validate({**content, "name": name})
    except ValidationError as error:
        raise UserError(" ".join(text for _, text in problems(error))) from None


def to_resource(spec: RunSpec, control: Control) -> dict[str, Any]:
    """The resource of a RunSpec. It has only the settings that were given; the controller fills in the defaults."""
    content = spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"name"})
    content |= control.model_dump(exclude_defaults=True)
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": spec.name}, "spec": content}
