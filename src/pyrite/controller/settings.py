"""The controller's settings, written by the chart: images, pods, the vLLM server, prices."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from pyrite.controller.resource import Camel
from pyrite.errors import UserError
from pyrite.plan import STAGES


class StageSettings(Camel):
    """Settings of one stage's pods."""

    resources: dict[str, Any] | None = Field(default=None, description="replaces the Job manifest's resources")
    pod: dict[str, Any] = Field(default={}, description="JSON merge patch for the pod spec, applied after worker.pod")


class WorkerSettings(Camel):
    """Settings of all stages' pods. ``env`` and ``env_from`` extend the container; ``pod`` is a JSON merge patch."""

    image: str
    image_pull_policy: str = "IfNotPresent"
    env: list[dict[str, Any]] = Field(default=[])
    env_from: list[dict[str, Any]] = Field(default=[])
    pod: dict[str, Any] = Field(default={})
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
    budget_dollars: float = Field(default=0.0, ge=0, description="per run; an alert fires above it; 0: no alert")


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
    manifests = {stage: _read(jobs / f"{stage}.yaml") for stage in STAGES}
    try:
        return Settings.model_validate({**_read(settings), "jobs": manifests})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False)]
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
