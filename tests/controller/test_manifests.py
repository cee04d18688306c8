"""The Jobs and run configs that the controller creates from jobs/."""

import copy
from typing import Any

import pytest
import yaml
from kubernetes.client import V1Job

from controller.harness import JOBS, LABELS, LLM
from pyrite.controller import manifests
from pyrite.controller.crd import MAX_NAME_LENGTH
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
  annotations: {safe-to-evict: "false"}
  pod: {serviceAccountName: worker, tolerations: [{operator: Exists}], securityContext: {fsGroup: 1}}
  stages:
    judge: {retries: 7}
    finetune:
      retries: 0
      image: registry.example/worker:cuda
      resources: {limits: {nvidia.com/gpu: "1"}}
      pod: {nodeSelector: {gpu: "true"}, tolerations: null}
judge: {parallelism: 3, urls: [http://vllm-0:8000], keySecret: key}
server: {statefulSet: vllm, replicas: 1}
"""
LONGEST = "r" * MAX_NAME_LENGTH


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


def test_deadline_allows_a_slow_server_to_judge_all_pairs(chart: Settings) -> None:
    """Regression: a pod that judged for two days was stopped, whatever the number of its pairs."""
    urls = [f"http://vllm-{i}:8000" for i in range(8)]
    judge = chart.judge.model_copy(update={"urls": urls, "parallelism": 16})
    shards = [Step("judge", 1, shard) for shard in range(256)]
    settings = chart.model_copy(update={"judge": judge})
    job = manifests.job(run(LLM), shards, "key", settings, 50_000_000)
    two_days, slow = 172800, 50_000_000 / 256 * 16 / 8  # one pair a second for each server
    assert job["metadata"]["annotations"] == {manifests.DEADLINE_ANNOTATION: str(two_days + slow).removesuffix(".0")}


@pytest.mark.parametrize("stage", [*STAGES, "probe"])
def test_each_job_is_valid_with_restricted_pods(stage: str, chart: Settings) -> None:
    """The client's models reject a misspelt field. Names and labels have at most 63 characters."""
    V1Job.model_validate(yaml.safe_load((JOBS / f"{stage}.yaml").read_text()))
    iteration = 100 if stage not in ("prepare", "generate", "assess", "evaluate", "probe") else None
    shards = range(1000) if stage in ("judge", "generate") else [None]
    manifest = manifests.job(run(LLM), [Step(stage, iteration, shard) for shard in shards], "key", chart)
    V1Job.model_validate(manifest)
    assert len(f"{manifest['metadata']['name']}-999") <= 63
    for text in manifest["metadata"]["labels"].values():
        assert len(text) <= 63
    pod = manifest["spec"]["template"]["spec"]
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
    tag = "cuda" if stage == "finetune" else "1"
    assert (worker["image"], worker["imagePullPolicy"]) == (f"registry.example/worker:{tag}", "Always")
    assert manifest["spec"]["template"]["metadata"]["annotations"] == {"safe-to-evict": "false"}
    assert {"name": "PYRITE_STORE", "value": "s3://b/p"} in worker["env"]
    assert worker["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert ("PYRITE_JUDGE_API_KEY" in str(worker["env"])) == (stage in manifests.LLM_STAGES)
    arguments = worker["args"]
    assert arguments[0] == stage
    assert ("--iteration" in arguments) == (iteration is not None)
    assert iteration is None or arguments[arguments.index("--iteration") + 1] == "100"
    assert manifests.needs_gpu(manifest) == (stage == "finetune")
    assert pod.get("tolerations") == (None if stage == "finetune" else [{"operator": "Exists"}])
    if shards != [None]:
        assert (manifest["spec"]["completions"], manifest["spec"]["parallelism"]) == (1000, 3)
        assert "$(JOB_COMPLETION_INDEX)" in arguments


def test_training_on_several_gpus_claims_them(chart: Settings) -> None:
    def pod(gpus: int, settings: Settings, stage: str = "finetune") -> dict[str, Any]:
        manifest = manifests.job(run({**LABELS, "finetune": {"gpus": gpus}}), [Step(stage, 1)], "key", settings)
        V1Job.model_validate(manifest)
        return dict(manifest["spec"]["template"]["spec"])

    own = chart.model_copy(update={"worker": chart.worker.model_copy(update={"stages": {}})})
    for settings in (chart, own):
        one, four = copy.deepcopy(pod(1, settings)), pod(4, settings)
        assert one == pod(1, settings), "the settings are not changed"
        assert "shm" not in str(one)
        resources = four["containers"][0]["resources"]
        assert [resources[name].pop("nvidia.com/gpu") for name in ("requests", "limits")] == ["4", "4"]
        assert [each["name"] for each in four["volumes"]] == [*(each["name"] for each in one["volumes"]), "shm"]
        assert four["volumes"][-1]["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
        mounts = [each["containers"][0]["volumeMounts"] for each in (one, four)]
        assert mounts[1] == [*mounts[0], {"name": "shm", "mountPath": "/dev/shm"}]
        assert "shm" not in str(pod(4, settings, "mine"))


@pytest.mark.parametrize(
    ("stage", "field", "retries"), [("judge", "backoffLimitPerIndex", 7), ("finetune", "backoffLimit", 0)]
)
def test_retries_are_a_setting(stage: str, field: str, retries: int, chart: Settings) -> None:
    spec = manifests.job(run(LLM), [Step(stage, 1, 0)], "key", chart)["spec"]
    assert {key: value for key, value in spec.items() if key.startswith("backoffLimit")} == {field: retries}


def test_max_failed_indexes_does_not_exceed_the_shards(chart: Settings) -> None:
    """Regression: the API server refused a Job that allowed more failed indexes than it had indexes."""
    manifest = manifests.job(run(LABELS), [Step("judge", 1, 0)], "key", chart)["spec"]
    assert manifest["maxFailedIndexes"] <= manifest["completions"] == manifest["parallelism"] == 1


def test_all_parts_of_the_corpus_are_encoded_at_once(chart: Settings) -> None:
    """Each on its own GPU: judge.parallelism limits the requests to a server."""
    manifest = manifests.job(run(LABELS), [Step("embed", 1, shard) for shard in range(8)], "key", chart)["spec"]
    assert manifest["parallelism"] == manifest["completions"] == 8


def test_run_config_has_the_runs_or_the_charts_judge_urls(chart: Settings) -> None:
    own = {**LLM, "resources": {"judge_urls": ["http://mine"]}}
    texts = [manifests.run_config(run(spec), chart)["data"]["run.yaml"] for spec in (LLM, own)]
    urls = [yaml.safe_load(text)["resources"]["judge_urls"] for text in texts]
    assert urls == [["http://vllm-0:8000"], ["http://mine"]]
    spec = run(own).spec
    assert spec is not None
    assert not manifests.uses_server(spec, "judge", chart), "a run with its own servers needs no scaling"


def test_second_judge_needs_its_own_server(chart: Settings) -> None:
    second = {**LLM, "evaluate": {"judge": {"model": "second"}}}
    assert "evaluate.judge has no server" in run(second).error
    judged = run({**second, "resources": {"evaluate_judge_urls": ["http://second"]}})
    assert judged.spec is not None
    assert not manifests.uses_server(judged.spec, "assess", chart), "the chart's server has the training judge's model"
    assert "PYRITE_JUDGE_API_KEY" not in str(manifests.job(judged, [Step("assess")], "key", chart))


def test_the_charts_server_is_that_of_the_second_judge(chart: Settings) -> None:
    cascade = {"kind": "cascade", "first": {"kind": "llm", "model": "a"}, "second": {"kind": "llm", "model": "b"}}
    judged = run({**LABELS, "judge": cascade, "resources": {"first_judge_urls": ["http://first"]}})
    assert judged.spec is not None
    assert manifests.uses_server(judged.spec, "judge", chart)
    text = yaml.safe_load(manifests.run_config(judged, chart)["data"]["run.yaml"])["resources"]
    assert (text["judge_urls"], text["first_judge_urls"]) == (["http://vllm-0:8000"], ["http://first"])


def test_job_name_depends_on_work_and_retry(chart: Settings) -> None:
    steps = [Step("mine", 1)]

    def name(spec: dict[str, Any], key: str = "k") -> str:
        return str(manifests.job(run(spec, "r"), steps, key, chart)["metadata"]["name"])

    assert name(LABELS) == name(LABELS)
    assert len({name(LABELS), name(LABELS, "other"), name({**LABELS, "retry": 1})}) == 3
