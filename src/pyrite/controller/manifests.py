"""Builds the objects of a step: a Job from the stage's manifest, and the run config that it mounts. Pure functions."""

import copy
import hashlib
import json
from typing import Any

from pyrite.addresses import normalize_server_urls
from pyrite.config import dump
from pyrite.controller.resource import API_VERSION, KIND, TrainingRun
from pyrite.controller.settings import Settings, StageSettings
from pyrite.errors import UserError
from pyrite.plan import PROBE, STAGES, Step
from pyrite.spec import RunSpec

RUN_LABEL, STAGE_LABEL, ITERATION_LABEL = "pyrite.dev/run", "pyrite.dev/stage", "pyrite.dev/iteration"
RUN_CONFIG_LABEL, TEMPLATE_LABEL = "pyrite.dev/run-config", "pyrite.dev/template"
DEADLINE_ANNOTATION = "pyrite.dev/deadline-seconds"
GPU = "nvidia.com/gpu"
#: Stages that send requests to the LLM server, and the probe, which does what judge does.
LLM_STAGES = (*(stage for stage, info in STAGES.items() if info.llm), PROBE.stage)
#: By this much each pair extends the deadline, for one server. Above the 0.67 s of docs/cluster.md, because
#: a deadline must not stop a pod that works.
_SECONDS_PER_PAIR = 1.0
_KEY = "run.yaml"

Manifest = dict[str, Any]


def run_config(run: TrainingRun, settings: Settings) -> Manifest:
    """An immutable ConfigMap of the run's current spec; its name includes a digest of the content."""
    assert run.spec is not None
    text = dump(_with_judge_urls(run.spec, settings))
    name = f"{run.name}-run-{_digest(text, run.uid)}"
    metadata = {"name": name, "labels": _labels(run, settings), "ownerReferences": [_owner_reference(run)]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": {_KEY: text}}


def job(run: TrainingRun, steps: list[Step], key: str, settings: Settings, pairs: float = 0) -> Manifest:
    """The Job for ``steps``: one step, or all shards of a stage and iteration.

    Args:
        key: a digest of what the steps' results depend on.
        pairs: the number of pairs that all steps together judge with the LLM's servers. They extend the deadline.

    Raises:
        UserError: the chart's settings replace the pod's containers or volumes.
    """
    stage, iteration, _ = steps[0]
    manifest = copy.deepcopy(settings.jobs[stage])
    extra = settings.worker.stages.get(stage, StageSettings())
    config_name = run_config(run, settings)["metadata"]["name"]
    labels = {**_labels(run, settings), STAGE_LABEL: stage}
    if iteration is not None:
        labels[ITERATION_LABEL] = str(iteration)
    if run.control.queue:
        labels["kueue.x-k8s.io/queue-name"] = run.control.queue
    manifest["metadata"] = {
        "name": job_name(run, steps[0], key),
        "labels": {**manifest["metadata"].get("labels", {}), **labels, RUN_CONFIG_LABEL: config_name},
        "ownerReferences": [_owner_reference(run)],
    }
    spec = manifest["spec"]
    # Kubernetes would count the time without a node, so the controller enforces the deadline: see reconcile.
    deadline = spec.pop("activeDeadlineSeconds")
    if extra.retries is not None:
        spec["backoffLimitPerIndex" if "backoffLimitPerIndex" in spec else "backoffLimit"] = extra.retries
    if spec.get("completionMode") == "Indexed":
        spec["completions"] = len(steps)
        parallelism = len(steps) if STAGES[stage].needs_device else settings.judge.parallelism
        spec["parallelism"] = min(len(steps), parallelism)
        spec["maxFailedIndexes"] = min(len(steps), spec["maxFailedIndexes"])  # the API server refuses more
    if pairs:
        assert run.spec is not None
        servers = len(_with_judge_urls(run.spec, settings).resources.judge_urls)
        # Pods that run at the same time share the servers.
        at_once = pairs * spec["parallelism"] / len(steps)
        deadline += round(at_once / max(1, servers) * _SECONDS_PER_PAIR)
    manifest["metadata"]["annotations"] = {DEADLINE_ANNOTATION: str(deadline)}
    template = spec["template"]
    template["metadata"]["labels"] |= labels
    template["metadata"]["annotations"] = settings.worker.annotations
    pod = template["spec"]
    for setting, patch in (
        ("worker.pod", settings.worker.pod),
        (f"worker.stages.{stage}.pod", extra.pod),
    ):
        if lists := {"containers", "volumes"} & patch.keys():
            raise UserError(
                f"the chart's {setting} replaces the {' and '.join(sorted(lists))} of the worker's pods, which they "
                "need. Remove it; use worker.extraEnv and resources to change the container."
            )
        pod = merge_patch(pod, patch)
    template["spec"] = pod
    for volume in pod["volumes"]:
        if volume["name"] == "run":
            volume["configMap"]["name"] = config_name
    worker = pod["containers"][0]
    worker |= {"image": extra.image or settings.worker.image, "imagePullPolicy": settings.worker.image_pull_policy}
    worker["args"] = _arguments(worker["args"], iteration)
    worker["env"] = [*worker.get("env", []), *settings.worker.env, *_judge_key_env(run, stage, settings)]
    worker["envFrom"] = settings.worker.env_from
    if extra.resources is not None:
        worker["resources"] = copy.deepcopy(extra.resources)
    if stage == "finetune" and run.spec and run.spec.finetune.gpus > 1:
        _claim_gpus(pod, run.spec.finetune.gpus)
    manifest["metadata"]["labels"][TEMPLATE_LABEL] = _digest(spec)
    return manifest


def _claim_gpus(pod: Manifest, count: int) -> None:
    """Have a worker's pod claim ``count`` GPUs, and give it shared memory, by which the processes of GPUs communicate.

    A container has 64 MiB of shared memory by default, which is too little for NCCL. It counts as memory of the pod.
    """
    worker = pod["containers"][0]
    for amounts in ("requests", "limits"):
        worker["resources"].setdefault(amounts, {})[GPU] = str(count)
    worker["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    pod["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}})


def job_name(run: TrainingRun, step: Step, key: str) -> str:
    """The name of a step's Job. It changes with ``key``, with each retry, and with the run's uid.

    Because of the uid, a run that was deleted and created again does not adopt the old run's Jobs.
    """
    text = f"{run.name}-{step.stage}" if step.iteration is None else f"{run.name}-{step.stage}-{step.iteration}"
    return f"{text}-{_digest(key, run.control.retry, run.uid)}"


def needs_gpu(manifest: Manifest) -> bool:
    """Whether a Job's pods claim a GPU."""
    containers = manifest["spec"]["template"]["spec"]["containers"]
    return any(int(c.get("resources", {}).get("limits", {}).get(GPU, 0)) > 0 for c in containers)


def uses_server(spec: RunSpec, stage: str | None, settings: Settings) -> bool:
    """Whether a run's stage sends requests to the vLLM server that the controller scales."""
    llm = STAGES["judge" if stage == PROBE.stage else stage].llm if stage else None
    return bool(llm and llm(spec)) and settings.server is not None and not spec.resources.judge_urls


def merge_patch(target: Any, patch: Any) -> Any:
    """``target`` with a JSON merge patch (RFC 7396) applied: null removes a field, lists are replaced."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


def _with_judge_urls(spec: RunSpec, settings: Settings) -> RunSpec:
    """The spec with the chart's judge servers, unless it names its own."""
    if spec.resources.judge_urls or not settings.judge.urls:
        return spec
    resources = spec.resources.model_copy(update={"judge_urls": settings.judge.urls})
    return spec.model_copy(update={"resources": resources})


def _arguments(arguments: list[str], iteration: int | None) -> list[str]:
    """The manifest's arguments, with its example iteration replaced."""
    if "--iteration" not in arguments:
        return arguments
    position = arguments.index("--iteration") + 1
    return [*arguments[:position], str(iteration), *arguments[position + 1 :]]


def _judge_key_env(run: TrainingRun, stage: str, settings: Settings) -> list[dict[str, Any]]:
    """The judge's API key, unless the run names other servers: they must not receive it."""
    assert run.spec is not None
    secret, urls = (
        settings.judge.key_secret,
        normalize_server_urls(settings.judge.urls, "Set the API key in judge.existingSecret"),
    )
    if not secret or stage not in LLM_STAGES or not set(run.spec.resources.judge_urls) <= set(urls):
        return []
    reference = {"secretKeyRef": {"name": secret, "key": "api-key"}}
    return [{"name": "PYRITE_JUDGE_API_KEY", "valueFrom": reference}]


def _labels(run: TrainingRun, settings: Settings) -> dict[str, str]:
    return {"app.kubernetes.io/name": "pyrite", "app.kubernetes.io/instance": settings.instance, RUN_LABEL: run.name}


def _owner_reference(run: TrainingRun) -> dict[str, Any]:
    """Kubernetes deletes the run's Jobs and run configs with the run. Its results stay in the store."""
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
