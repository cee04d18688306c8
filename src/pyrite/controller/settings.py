"""What the chart tells the controller: images, pods, the vLLM server, prices."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from pyrite.controller.resource import Camel
from pyrite.errors import UserError
from pyrite.plan import STAGES


class StageSettings(Camel):
    """What differs for one stage's pods."""

    resources: dict[str, Any] | None = Field(default=None, description="in place of the Job manifest's")
    pod: dict[str, Any] = Field(default={}, description="merged over the pod spec, after worker.pod")


class WorkerSettings(Camel):
    """The pods of all stages. ``env`` and ``env_from`` are added to the worker container's, ``pod`` is merged over."""

    image: str
    image_pull_policy: str = "IfNotPresent"
    env: list[dict[str, Any]] = Field(default=[])
    env_from: list[dict[str, Any]] = Field(default=[])
    pod: dict[str, Any] = Field(default={})
    stages: dict[str, StageSettings] = Field(default={})


class JudgeSettings(Camel):
    """How the judge is reached where a run does not say so itself."""

    parallelism: int = Field(default=4, ge=1, description="pods that judge at once")
    urls: list[str] = Field(default=[])
    key_secret: str = Field(default="", description="Secret whose api-key is the server's API key")


class ServerSettings(Camel):
    """The vLLM server that is scaled up for judging."""

    stateful_set: str
    replicas: int = Field(ge=1)


class CostSettings(Camel):
    """What a run's hours cost."""

    dollars_per_hour: float = Field(default=0.0, ge=0)
    budget_dollars: float = Field(default=0.0, ge=0, description="of one run; beyond it an alert fires; 0: none does")


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
        UserError: one of them is not there, or not what it should be.
    """
    manifests = {stage: _read(jobs / f"{stage}.yaml") for stage in STAGES}
    try:
        return Settings.model_validate({**_read(settings), "jobs": manifests})
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False)]
        raise UserError(
            f"{settings}: {'; '.join(wrong)}. Are the chart and the controller's image of one version?"
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. The chart mounts it.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a mapping.")
    return content
