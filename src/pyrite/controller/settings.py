"""The controller's settings, written by the chart: images, pods, the vLLM server, prices."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from pyrite.controller.resource import Camel
from pyrite.errors import UserError, plain_message
from pyrite.plan import PROBE, STAGES


class StageSettings(Camel):
    """Settings of one stage's pods."""

    image: str | None = Field(default=None, description="replaces worker.image")
    resources: dict[str, Any] | None = Field(default=None, description="replaces the Job manifest's resources")
    pod: dict[str, Any] = Field(default={}, description="JSON merge patch for the pod spec, applied after worker.pod")
    deadline_seconds: int | None = Field(
        default=None, ge=1, description="replaces the Job's deadline; the controller enforces it"
    )
    retries: int | None = Field(default=None, ge=0, description="replaces backoffLimit or backoffLimitPerIndex")


class WorkerSettings(Camel):
    """Settings of all stages' pods. ``env`` and ``env_from`` extend the container; ``pod`` is a JSON merge patch."""

    image: str
    image_pull_policy: str = "IfNotPresent"
    env: list[dict[str, Any]] = Field(default=[])
    env_from: list[dict[str, Any]] = Field(default=[])
    pod: dict[str, Any] = Field(default={})
    annotations: dict[str, str] = Field(default={}, description="of the pods")
    stages: dict[str, StageSettings] = Field(default={})


class JudgeSettings(Camel):
    """Judging; ``urls`` and ``key_secret`` apply to runs that name no servers."""

    parallelism: int = Field(default=4, ge=1, description="shards that are judged in parallel")
    urls: list[str] = Field(default=[])
    key_secret: str = Field(default="", description="Secret whose api-key is the server's API key")


class ServerSettings(Camel):
    """The vLLM server that is scaled up for judging."""

    stateful_set: str
    replicas: int = Field(ge=1)


class CostSettings(Camel):
    """The price of a run's hours."""

    dollars_per_hour: float = Field(default=0.0, ge=0)
    budget_dollars: float = Field(default=0.0, ge=0, description="per run, unless its spec has another; 0: none")
    on_budget: Literal["alert", "suspend"] = Field(default="alert", description="above the budget")


class Settings(Camel):
    """settings.yaml, and the Job manifest of each stage."""

    instance: str
    worker: WorkerSettings
    judge: JudgeSettings = JudgeSettings()
    server: ServerSettings | None = None
    cost: CostSettings = CostSettings()
    jobs: dict[str, dict[str, Any]] = Field(default={})


def load(settings: Path, jobs: Path) -> Settings:
    """Read settings.yaml and the folder of Job manifests.

    Raises:
        UserError: a file is missing or not valid.
    """
    manifests = {stage: _read(jobs / f"{stage}.yaml") for stage in [*STAGES, PROBE.stage]}
    try:
        return Settings.model_validate({**_read(settings), "jobs": manifests})
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, each['loc']))}: {plain_message(each['msg'])}"
            for each in error.errors(include_url=False)
        ]
        raise UserError(
            f"{settings}: {'; '.join(problems)}. Use the same version of the chart and of the controller's image."
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. The chart mounts it; run `helm upgrade`.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a YAML mapping.")
    return content
