"""The Jobs that the controller makes from jobs/."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import V1Job

from controller.harness import JOBS, LABELS, VLLM
from pyrite.controller import manifests
from pyrite.controller.crd import MOST_CHARACTERS
from pyrite.controller.resource import TrainingRun, parse
from pyrite.controller.settings import Settings, load
from pyrite.plan import STAGES, Step

CHART = """
instance: release
worker:
  image: registry.example/worker:1
  imagePullPolicy: Always
  env: [{name: PYRITE_STORE, value: "s3://b/p"}]
  envFrom: [{secretRef: {name: store}}]
  pod: {serviceAccountName: worker, tolerations: [{operator: Exists}], securityContext: {fsGroup: 1}}
  stages:
    finetune:
      resources: {limits: {nvidia.com/gpu: "1"}}
      pod: {nodeSelector: {gpu: "true"}, tolerations: null}
judge: {parallelism: 3, urls: [http://vllm-0:8000], keySecret: key}
server: {statefulSet: vllm, replicas: 1}
"""
LONGEST = "r" * MOST_CHARACTERS


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = tmp_path_factory.mktemp("chart") / "settings.yaml"
    path.write_text(CHART)
    return load(path, JOBS)


def run(spec: dict[str, Any], name: str = LONGEST) -> TrainingRun:
    metadata = {
        "name": name,
        "uid": "u",
        "generation": 1,
        "creationTimestamp": "2026-11-23T08:00:00Z",
        "resourceVersion": "1",
    }
    return parse({"metadata": metadata, "spec": {**spec, "iterations": 100}})


@pytest.mark.parametrize("stage", STAGES)
def test_every_jobs_manifest_is_a_job_with_restricted_pods(stage: str, chart: Settings) -> None:
    """A misspelt field is refused by the client's own models; names stay within Kubernetes' 63 characters."""
    V1Job.model_validate(yaml.safe_load((JOBS / f"{stage}.yaml").read_text()))
    iteration = 100 if stage not in ("prepare", "generate", "evaluate") else None
    shards = range(1000) if stage in ("judge", "generate") else [None]
    made = manifests.job(run(VLLM), [Step(stage, iteration, shard) for shard in shards], "key", chart)
    V1Job.model_validate(made)
    assert len(f"{made['metadata']['name']}-999") <= 63
    for text in made["metadata"]["labels"].values():
        assert len(text) <= 63
    pod = made["spec"]["template"]["spec"]
    worker = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["fsGroup"] == 1
    assert not pod["automountServiceAccountToken"]
    assert worker["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert worker["resources"]["limits"]
    assert (worker["image"], worker["imagePullPolicy"]) == ("registry.example/worker:1", "Always")
    assert {"name": "PYRITE_STORE", "value": "s3://b/p"} in worker["env"]
    assert worker["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert ("PYRITE_JUDGE_API_KEY" in str(worker["env"])) == (stage in manifests.ASKING)
    arguments = worker["args"]
    assert arguments[0] == stage
    assert ("--iteration" in arguments) == (iteration is not None)
    assert iteration is None or arguments[arguments.index("--iteration") + 1] == "100"
    assert manifests.needs_gpu(made) == (stage == "finetune")
    assert pod.get("tolerations") == (None if stage == "finetune" else [{"operator": "Exists"}])
    if shards != [None]:
        assert (made["spec"]["completions"], made["spec"]["parallelism"]) == (1000, 3)
        assert "$(JOB_COMPLETION_INDEX)" in arguments


def test_a_job_of_few_shards_is_one_that_the_api_server_takes(chart: Settings) -> None:
    """The bug: more failed indexes allowed than there are indexes, which the API server refuses."""
    made = manifests.job(run(LABELS), [Step("judge", 1, 0)], "key", chart)["spec"]
    assert made["maxFailedIndexes"] <= made["completions"] == made["parallelism"] == 1


def test_the_description_names_the_charts_server_unless_the_run_names_its_own(chart: Settings) -> None:
    own = {**VLLM, "resources": {"judge_urls": ["http://mine"]}}
    texts = [manifests.description(run(spec), chart)["data"]["run.yaml"] for spec in (VLLM, own)]
    urls = [yaml.safe_load(text)["resources"]["judge_urls"] for text in texts]
    assert urls == [["http://vllm-0:8000"], ["http://mine"]]
    spec = run(own).spec
    assert spec is not None
    assert not manifests.uses_server(spec, "judge", chart), "a run with its own servers needs none scaled up"


def test_the_same_work_has_the_same_name_and_a_retry_another(chart: Settings) -> None:
    steps = [Step("mine", 1)]

    def name(spec: dict[str, Any], key: str = "k") -> str:
        return str(manifests.job(run(spec, "r"), steps, key, chart)["metadata"]["name"])

    assert name(LABELS) == name(LABELS)
    assert len({name(LABELS), name(LABELS, "other"), name({**LABELS, "retry": 1})}) == 3


def test_the_crd_is_in_step_with_the_run_spec() -> None:
    """`make lint` says the same; here so that a change of the RunSpec alone fails the tests."""
    from pyrite.controller.crd import definition

    path = Path(__file__).parents[2] / "charts/pyrite/crds/trainingruns.yaml"
    assert yaml.safe_load(path.read_text()) == definition()
