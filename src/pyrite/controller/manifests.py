"""What is created for a step: a Job from the stage's manifest, and the run's description beside it. Pure."""

import copy
import hashlib
import json
from typing import Any

from pyrite.addresses import servers
from pyrite.config import dump
from pyrite.controller.resource import API_VERSION, KIND, TrainingRun
from pyrite.controller.settings import Settings
from pyrite.errors import UserError
from pyrite.plan import Step
from pyrite.spec import RunSpec

RUN_LABEL, STAGE_LABEL, ITERATION_LABEL = "pyrite.dev/run", "pyrite.dev/stage", "pyrite.dev/iteration"
DESCRIPTION_LABEL, TEMPLATE_LABEL = "pyrite.dev/description", "pyrite.dev/template"
GPU = "nvidia.com/gpu"
#: Stages that ask the LLM server.
ASKING = ("generate", "judge")
_KEY = "run.yaml"

Manifest = dict[str, Any]


def description(run: TrainingRun, settings: Settings) -> Manifest:
    """The immutable ConfigMap of the run's description as it is now."""
    assert run.spec is not None
    text = dump(_with_judge(run.spec, settings))
    name = f"{run.name}-run-{_digest(text, run.uid)}"
    metadata = {"name": name, "labels": _labels(run, settings), "ownerReferences": [_owner(run)]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": {_KEY: text}}


def job(run: TrainingRun, steps: list[Step], key: str, settings: Settings) -> Manifest:
    """The Job that does ``steps``: one step, or all shards of a stage and iteration.

    Args:
        key: what the steps' results depend on; the Job's name holds it, so that the same work has the same name.

    Raises:
        UserError: the chart's settings leave no Job that could do it.
    """
    stage, iteration, _ = steps[0]
    manifest = copy.deepcopy(settings.jobs[stage])
    extra = settings.worker.stages.get(stage)
    named = description(run, settings)["metadata"]["name"]
    labels = {**_labels(run, settings), STAGE_LABEL: stage}
    if iteration is not None:
        labels[ITERATION_LABEL] = str(iteration)
    if run.control.queue:
        labels["kueue.x-k8s.io/queue-name"] = run.control.queue
    manifest["metadata"] = {
        "name": job_name(run, steps[0], key),
        "labels": {**manifest["metadata"].get("labels", {}), **labels, DESCRIPTION_LABEL: named},
        "ownerReferences": [_owner(run)],
    }
    spec = manifest["spec"]
    if spec.get("completionMode") == "Indexed":
        spec["completions"] = len(steps)
        spec["parallelism"] = min(len(steps), settings.judge.parallelism)
        spec["maxFailedIndexes"] = min(len(steps), spec["maxFailedIndexes"])  # more than there are is refused
    template = spec["template"]
    template["metadata"]["labels"] |= labels
    pod = template["spec"]
    for place, change in (
        ("worker.pod", settings.worker.pod),
        (f"worker.stages.{stage}.pod", extra.pod if extra else {}),
    ):
        if lists := {"containers", "volumes"} & change.keys():
            raise UserError(
                f"the chart's {place} replaces the {' and '.join(sorted(lists))} of the worker's pods, which cannot "
                "work without their own. Leave that out; worker.extraEnv and resources change the container."
            )
        pod = merged(pod, change)
    template["spec"] = pod
    for volume in pod["volumes"]:
        if volume["name"] == "run":
            volume["configMap"]["name"] = named
    worker = pod["containers"][0]
    worker |= {"image": settings.worker.image, "imagePullPolicy": settings.worker.image_pull_policy}
    worker["args"] = _arguments(worker["args"], iteration)
    worker["env"] = [*worker.get("env", []), *settings.worker.env, *_key_of(run, stage, settings)]
    worker["envFrom"] = settings.worker.env_from
    if extra and extra.resources is not None:
        worker["resources"] = extra.resources
    manifest["metadata"]["labels"][TEMPLATE_LABEL] = _digest(spec)
    return manifest


def job_name(run: TrainingRun, step: Step, key: str) -> str:
    """The name of the Job that does a step: the same for the same work of the same run, another after a retry.

    The uid: a run that was deleted and made anew must not take its predecessor's Jobs, which are going, for its own.
    """
    text = f"{run.name}-{step.stage}" if step.iteration is None else f"{run.name}-{step.stage}-{step.iteration}"
    return f"{text}-{_digest(key, run.control.retry, run.uid)}"


def needs_gpu(manifest: Manifest) -> bool:
    """Whether a Job's pods claim a GPU."""
    containers = manifest["spec"]["template"]["spec"]["containers"]
    return any(int(c.get("resources", {}).get("limits", {}).get(GPU, 0)) > 0 for c in containers)


def uses_server(spec: RunSpec, stage: str | None, settings: Settings) -> bool:
    """Whether a run's stage asks the vLLM server that the controller scales."""
    asks = (stage == "generate" and spec.generate) or (stage == "judge" and spec.judge.needs_server)
    return bool(asks) and settings.server is not None and not spec.resources.judge_urls


def merged(target: Any, change: Any) -> Any:
    """``change`` merged over ``target`` as a JSON merge patch (RFC 7396): null removes, lists are replaced."""
    if not isinstance(change, dict):
        return change
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in change.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def _with_judge(spec: RunSpec, settings: Settings) -> RunSpec:
    """The description with the chart's server filled in, where the run names none of its own."""
    if spec.resources.judge_urls or not settings.judge.urls:
        return spec
    resources = spec.resources.model_copy(update={"judge_urls": settings.judge.urls})
    return spec.model_copy(update={"resources": resources})


def _arguments(arguments: list[str], iteration: int | None) -> list[str]:
    """The manifest's arguments, with the iteration in the place of its sample's."""
    if "--iteration" not in arguments:
        return arguments
    position = arguments.index("--iteration") + 1
    return [*arguments[:position], str(iteration), *arguments[position + 1 :]]


def _key_of(run: TrainingRun, stage: str, settings: Settings) -> list[dict[str, Any]]:
    """The API key, for the chart's own servers alone: who may make a run could have it sent to an address of theirs."""
    assert run.spec is not None
    secret, urls = settings.judge.key_secret, servers(settings.judge.urls)
    if not secret or stage not in ASKING or not set(run.spec.resources.judge_urls) <= set(urls):
        return []
    reference = {"secretKeyRef": {"name": secret, "key": "api-key"}}
    return [{"name": "PYRITE_JUDGE_API_KEY", "valueFrom": reference}]


def _labels(run: TrainingRun, settings: Settings) -> dict[str, str]:
    return {"app.kubernetes.io/name": "pyrite", "app.kubernetes.io/instance": settings.instance, RUN_LABEL: run.name}


def _owner(run: TrainingRun) -> dict[str, Any]:
    """Deleting the run deletes what was made for it here; what it made in the store stays."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": run.name,
        "uid": run.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]
