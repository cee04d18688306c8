"""Rendering of the chart without a cluster."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.tools import CHART, INSTALLATIONS, Object, get_object, helm, kube_score, objects, pod_specs, rendered
from pyrite.controller import manifests, settings
from pyrite.controller.resource import parse
from pyrite.plan import PROBE, STAGES, Step

ROOT = CHART.parents[1]
#: Volume types that the restricted standard allows and the chart uses.
VOLUMES = ("configMap", "emptyDir", "persistentVolumeClaim")
METADATA = {
    "name": "run",
    "uid": "u",
    "generation": 1,
    "resourceVersion": "1",
    "creationTimestamp": "2026-11-23T08:00:00Z",
}
RUN = parse({"metadata": METADATA, "spec": {"source": {"kind": "sample"}}})
installations = pytest.mark.parametrize("values", INSTALLATIONS.values(), ids=INSTALLATIONS)


@installations
def test_helm_lint_passes(values: tuple[str, ...]) -> None:
    done = helm("lint", "--strict", str(CHART), *values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kube_score_passes_and_all_ignores_are_needed() -> None:
    """An ignored check that would pass anyway could hide the next failure."""
    ignored: set[str] = set()
    needed: set[str] = set()
    for values in INSTALLATIONS.values():
        text = rendered(*values)
        assert {name: checks for name, checks in kube_score(text).items() if checks} == {}
        ignored |= {check for line in re.findall(r"kube-score/ignore: (.+)", text) for check in line.split(",")}
        needed |= set().union(*kube_score(text, "--disable-ignore-checks-annotations").values())
    assert ignored == needed


@pytest.mark.parametrize("installation", ["a laptop", "eks"])
def test_kube_score_passes_for_the_controllers_jobs(installation: str, tmp_path: Path) -> None:
    """Check Jobs that the controller creates from jobs/ and the chart's settings, together with the chart.

    Ignores container-image-pull-policy because tags are versions: with Always, a start would depend on the registry.
    """
    resources = objects(*INSTALLATIONS[installation])
    loaded = read_settings(resources, tmp_path)
    jobs = [manifests.job(RUN, [Step(stage, 1)], "key", loaded) for stage in loaded.jobs]
    text = "\n---\n".join(map(json.dumps, [*resources, *jobs]))  # in YAML some digests would be read as numbers
    scored = kube_score(text, "--ignore-test=container-image-pull-policy")
    assert len([name for name in scored if name.startswith("Job/batch/v1//run-")]) == len(jobs)
    assert {name: checks for name, checks in scored.items() if checks} == {}


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("store.url=http://bucket", "/store/url"),
        ("stor.url=s3://bucket", "'stor'"),
        ("judge.parallelism=0", "/judge/parallelism"),
        ("judge.urls={localhost}", "/judge/urls/0"),
        ("controller.image.tag=latest", "/controller/image/tag"),
        ("worker.stages.fine-tune.pod.hostNetwork=true", "/worker/stages"),
        ("worker.stages.finetune.nodeSelector.a=b", "/worker/stages/finetune"),
        ("server.replicas=four", "/server/replicas"),
        ("server.persistence.size=lots", "/server/persistence/size"),
        ("server.tolerations.key=gpu", "/server/tolerations"),
        ("worker.stages.finetune.deadlineSeconds=soon", "/worker/stages/finetune/deadlineSeconds"),
        ("networkPolicy.store.to=null", "/networkPolicy/store"),
        ("networkPolicy.apiServer.ports={70000}", "/networkPolicy/apiServer/ports/0"),
        ("networkPolicy.hub.to[0].cidr=0.0.0.0/0", "/networkPolicy/hub/to/0"),
        ("huggingface.existingSecret=hf_SecretToken", "/huggingface/existingSecret"),
    ],
)
def test_an_invalid_value_is_rejected_with_its_path(setting: str, path: str) -> None:
    done = helm("template", "pyrite", str(CHART), f"--set={setting}")
    assert done.returncode != 0
    assert path in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set=server.enabled=true,judge.urls={http://a}",), "judge.urls and server.enabled"),
        (("--set=metrics.podMonitor.enabled=true",), "this cluster has no PodMonitor"),
        (("--set=metrics.rules.enabled=true",), "this cluster has no PrometheusRule"),
        (("--set=metrics.dashboards.enabled=true",), "set metrics.rules.enabled too"),
    ],
)
def test_impossible_settings_are_rejected(arguments: tuple[str, ...], message: str) -> None:
    done = helm("template", "pyrite", str(CHART), *arguments)
    assert done.returncode != 0
    assert message in done.stderr


@installations
def test_every_pod_meets_the_restricted_standard(values: tuple[str, ...]) -> None:
    """All pods meet the restricted Pod Security Standard, including Jobs and the pods of `helm test`."""
    pods = dict(pod_specs(objects(*values)))
    assert len(pods) >= 1 + 1 + len(STAGES)
    assert {name: wrong for name, pod in pods.items() if (wrong := violations(pod))} == {}


def violations(pod: Object) -> list[str]:
    """Violations of the restricted standard and of our additional rules."""
    wrong = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    pod_context = pod.get("securityContext", {})
    wrong += [f"volume {volume}" for volume in pod.get("volumes", ()) if not set(volume) <= {"name", *VOLUMES}]
    if pod_context.get("sysctls"):
        wrong.append("sysctls")
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        context = container.get("securityContext", {})
        merged = {**pod_context, **context}
        capabilities = context.get("capabilities", {})
        rules = {
            "runAsNonRoot": merged.get("runAsNonRoot") is True,
            "runAsUser": merged.get("runAsUser") == 65532,
            "seccompProfile": merged.get("seccompProfile", {}).get("type") == "RuntimeDefault",
            "privileged": not context.get("privileged"),
            "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is False,
            "capabilities": capabilities.get("drop") == ["ALL"] and not capabilities.get("add"),
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", ())),
            "readOnlyRootFilesystem": context.get("readOnlyRootFilesystem") is True,
            "requests and limits": "cpu" in container["resources"]["requests"] and container["resources"]["limits"],
            "image": re.fullmatch(r"[a-z0-9][^:]*:(?!latest$)[\w.-]+", container["image"]),
        }
        wrong += [f"{container['name']}: {rule}" for rule, passed in rules.items() if not passed]
    if pod.get("enableServiceLinks") is not False:
        wrong.append("enableServiceLinks")
    return wrong


@installations
def test_only_the_controller_and_the_lease_have_a_token(values: tuple[str, ...]) -> None:
    resources = objects(*values)
    kinds = ("Deployment", "CronJob")
    accounts = [pod["serviceAccountName"] for name, pod in pod_specs(resources) if name.startswith(kinds)]
    for name, pod in pod_specs(resources):
        assert pod["automountServiceAccountToken"] is (pod.get("serviceAccountName") in accounts), name


def test_the_controllers_role_is_minimal() -> None:
    """No verb is added for a server that is not deployed. tests/controller/test_api.py needs all of them."""
    expected = {
        ("pyrite.dev", "trainingruns", "list"),
        ("pyrite.dev", "trainingruns/status", "patch"),
        ("batch", "jobs", "create delete list patch"),
        ("", "configmaps", "create"),
        ("", "pods", "list"),
        ("", "events", "create list"),
    }
    server = {
        ("apps", "statefulsets", "get", "pyrite-vllm"),
        ("apps", "statefulsets/scale", "patch", "pyrite-vllm"),
    }
    renew, read = (("coordination.k8s.io", "leases", verb, "pyrite-vllm") for verb in ("patch", "get"))
    eks = objects(*INSTALLATIONS["eks"])
    assert permissions(objects(*INSTALLATIONS["defaults"]), "pyrite-controller") == expected
    assert permissions(eks, "pyrite-controller") == expected | server | {renew}
    assert permissions(eks, "pyrite-vllm-lease") == server | {read}


def permissions(resources: list[Object], role: str) -> set[tuple[str, ...]]:
    assert not [one for one in resources if one["kind"].startswith("ClusterRole")]
    return {
        (group, resource, " ".join(sorted(rule["verbs"])), *rule.get("resourceNames", ()))
        for rule in get_object(resources, "Role", role)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


@installations
def test_the_controller_can_read_its_settings_and_jobs(values: tuple[str, ...], tmp_path: Path) -> None:
    """The controller's own parser accepts both ConfigMaps; it rejects unknown keys and missing stages."""
    resources = objects(*values)
    loaded = read_settings(resources, tmp_path)
    controller = get_object(resources, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    store = {"PYRITE_STORE", "AWS_REGION", "AWS_ENDPOINT_URL", "PYRITE_S3_KMS_KEY"}
    assert environment(controller, *store) == environment({"env": loaded.worker.env}, *store)
    assert controller.get("envFrom", []) == loaded.worker.env_from
    assert loaded.instance == "pyrite"
    sets = [one for one in resources if one["kind"] == "StatefulSet"]
    assert bool(sets) == (loaded.server is not None)
    if loaded.server:
        job = get_object(resources, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        value = environment(job["containers"][0], "PYRITE_SERVER")["PYRITE_SERVER"]["value"]
        assert value == loaded.server.stateful_set == get_object(resources, "Lease")["metadata"]["name"]
        service = sets[0]["spec"]["serviceName"]
        assert loaded.server.stateful_set == sets[0]["metadata"]["name"]
        assert loaded.judge.urls == [f"http://{service}-{i}.{service}:8000" for i in range(loaded.server.replicas)]


def read_settings(resources: list[Object], folder: Path) -> settings.Settings:
    for name in ("jobs", "settings"):
        [data] = [
            o["data"] for o in resources if o["kind"] == "ConfigMap" and o["metadata"]["name"].endswith(f"-{name}")
        ]
        (folder / name).mkdir()
        for file, text in data.items():
            (folder / name / file).write_text(text)
    return settings.load(folder / "settings/settings.yaml", folder / "jobs")


def environment(container: Object, *names: str) -> dict[str, Any]:
    return {one["name"]: one for one in container.get("env", ()) if one["name"] in names}


def test_every_value_is_used() -> None:
    """Every value appears in the output, so none is silently ignored."""
    values = INSTALLATIONS["everything"]
    text = Path(values[1]).read_text()
    expected = set(re.findall(r"seen-[a-z-]+", text))
    assert expected - set(re.findall(r"seen-[a-z-]+", rendered(*values))) == set()
    untested = missing_keys(yaml.safe_load((CHART / "values.yaml").read_text()), yaml.safe_load(text))
    assert untested == ["judge.urls"], "excluded by server.enabled"
    resources = objects(*values)
    stateful_set = get_object(resources, "StatefulSet")["spec"]
    [vllm] = stateful_set["template"]["spec"]["containers"]
    assert "--max-model-len=777" in vllm["args"]
    assert vllm["startupProbe"]["failureThreshold"] * vllm["startupProbe"]["periodSeconds"] >= 95
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "5Gi"}} in stateful_set["template"]["spec"][
        "volumes"
    ]
    assert [claim["metadata"]["name"] for claim in stateful_set["volumeClaimTemplates"]] == ["cache"]
    key = {"secretKeyRef": {"name": "seen-judge-secret", "key": "api-key"}}
    assert environment(vllm, "VLLM_API_KEY")["VLLM_API_KEY"]["valueFrom"] == key
    assert {"deadlineSeconds: 12345", "retries: 6"} <= set(map(str.strip, rendered(*values).splitlines()))
    for name, pod in pod_specs(resources):
        if "-jobs/" not in name:
            assert pod["imagePullSecrets"] == [{"name": "seen-pull-secret"}], name


def test_the_lease_is_checked_also_on_the_servers_nodes() -> None:
    """The controller's node may be lost while the servers' nodes cost money. On other nodes, such as arm64 ones, the
    image may not start."""
    resources = objects(*INSTALLATIONS["everything"])
    pod = get_object(resources, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert {each["key"] for each in pod["tolerations"]} == {"seen-controller-taint", "seen-server-taint"}
    assert "nodeSelector" not in pod
    affinity = pod["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [term["matchExpressions"] for term in terms] == [
        [{"key": f"seen-{component}-node", "operator": "In", "values": ["a"]}] for component in ("controller", "server")
    ]
    [preferred] = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["preference"]["matchExpressions"] == [
        {"key": "seen-server-node", "operator": "NotIn", "values": ["a"]}
    ]
    minutes = environment(pod["containers"][0], "PYRITE_LEASE_MINUTES")["PYRITE_LEASE_MINUTES"]
    assert minutes["value"] == "16"


def missing_keys(default: Any, changed: Any, name: str = "") -> list[str]:
    """Dotted keys of ``default`` that ``changed`` does not contain."""
    if (
        not isinstance(default, dict)
        or not isinstance(changed, dict)
        or name.endswith(("resources.", "podAnnotations."))
    ):
        return []
    missing = [f"{name}{key}" for key in default if key not in changed]
    return missing + [one for key in changed for one in missing_keys(default.get(key), changed[key], f"{name}{key}.")]


@pytest.mark.parametrize("loads", ["server", "workers"])
def test_only_pods_that_may_download_get_the_hub_token(loads: str, tmp_path: Path) -> None:
    server = loads == "server"
    resources = objects(
        "--set=store.url=s3://bucket/prefix,huggingface.existingSecret=hub,server.enabled=true",
        f"--set=server.model.allowHub={str(server).lower()},networkPolicy.allowHub={str(not server).lower()}",
    )
    reference = {"secretKeyRef": {"name": "hub", "key": "token"}}
    token, offline = {"HF_TOKEN": {"name": "HF_TOKEN", "valueFrom": reference}}, "HF_HUB_OFFLINE"
    [vllm] = get_object(resources, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    [controller] = get_object(resources, "Deployment")["spec"]["template"]["spec"]["containers"]
    worker = {"env": read_settings(resources, tmp_path).worker.env}
    has, has_not = (vllm, worker) if server else (worker, vllm)
    assert environment(has, "HF_TOKEN", offline) == token
    assert environment(has_not, "HF_TOKEN", offline) == {offline: {"name": offline, "value": "1"}}
    assert environment(controller, "HF_TOKEN") == {}


def test_vllm_writes_only_to_writable_mounts() -> None:
    """vLLM crashes if a cache folder is on its read-only file system."""
    pod = get_object(objects(*INSTALLATIONS["eks"]), "StatefulSet")["spec"]["template"]["spec"]
    [vllm] = pod["containers"]
    writable = [mount["mountPath"] for mount in vllm["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/cache", "/tmp", "/dev/shm"]
    names = """HOME HF_HOME VLLM_CACHE_ROOT VLLM_CONFIG_ROOT XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME
        TRITON_CACHE_DIR TORCHINDUCTOR_CACHE_DIR CUDA_CACHE_PATH FLASHINFER_WORKSPACE_BASE NUMBA_CACHE_DIR TMPDIR"""
    variables = environment(vllm, *names.split())
    assert sorted(variables) == sorted(names.split())
    assert all(one["value"].startswith(("/cache", "/tmp")) for one in variables.values())
    assert environment(vllm, "USER"), "torch needs a user name, and uid 65532 has none"


def test_a_new_chart_version_does_not_change_the_vllm_spec(tmp_path: Path) -> None:
    """Otherwise each upgrade would reload the model, or fail because a claim template is immutable."""
    newer = tmp_path / "pyrite"
    shutil.copytree(CHART, newer)
    about = yaml.safe_load((newer / "Chart.yaml").read_text())
    (newer / "Chart.yaml").write_text(yaml.safe_dump({**about, "version": "9.9.9", "appVersion": "9.9.9"}))
    old, new = (get_object(objects(*INSTALLATIONS["eks"], chart=c), "StatefulSet") for c in (CHART, newer))
    assert old["metadata"]["labels"] != new["metadata"]["labels"]
    assert old["spec"] == new["spec"]


def eks_jobs(folder: Path) -> dict[str, Object]:
    """The Jobs of one run with values-eks.yaml, by stage."""
    loaded = read_settings(objects(*INSTALLATIONS["eks"]), folder)
    steps = [*(Step(stage, 1) for stage in STAGES), PROBE]
    return {step.stage: manifests.job(RUN, [step], "key", loaded) for step in steps}


def test_only_gpu_pods_keep_the_gpu_node_on_eks(tmp_path: Path) -> None:
    """Regression: a controller with emptyDir volumes prevented the removal of the GPU node: $136 a day."""
    resources, jobs = objects(*INSTALLATIONS["eks"]), eks_jobs(tmp_path)
    controller = get_object(resources, "Deployment")["spec"]["template"]
    vllm = get_object(resources, "StatefulSet")["spec"]["template"]
    gpu_node = {"node.kubernetes.io/instance-type": "g5.12xlarge", "kubernetes.io/arch": "amd64"}
    pods = {"controller": controller, "vllm": vllm} | {stage: job["spec"]["template"] for stage, job in jobs.items()}
    on_gpu_node = {name for name, pod in pods.items() if fits(pod["spec"], gpu_node)}
    assert on_gpu_node == {name for name, pod in pods.items() if claims_gpu(pod["spec"])}
    assert on_gpu_node == {"vllm", "retrieve", "finetune", "validate", "evaluate"}
    taint = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert {name for name, pod in pods.items() if pod["spec"].get("tolerations") == taint} == on_gpu_node
    cpu_node = {"node.kubernetes.io/instance-type": "m7i.large", "kubernetes.io/arch": "amd64"}
    assert {name for name, pod in pods.items() if fits(pod["spec"], cpu_node)} == pods.keys() - on_gpu_node
    evict = "cluster-autoscaler.kubernetes.io/safe-to-evict"
    found = {name: pod["metadata"]["annotations"].get(evict) for name, pod in pods.items()}
    assert found == {name: "true" if name == "controller" else "false" for name in pods}


def claims_gpu(pod: Object) -> bool:
    return any("nvidia.com/gpu" in one["resources"]["limits"] for one in pod["containers"])


def fits(pod: Object, node: dict[str, str]) -> bool:
    """Whether the pod's node selector and required affinity match the node's labels."""
    rules = pod.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    expressions = [one for term in rules.get("nodeSelectorTerms", ()) for one in term["matchExpressions"]]
    assert all(one["operator"] == "NotIn" for one in expressions)
    return all(node[key] == value for key, value in pod.get("nodeSelector", {}).items()) and not any(
        node[one["key"]] in one["values"] for one in expressions
    )


def test_images_of_the_chart_come_from_the_registry() -> None:
    """Regression: the lease's CronJob had the image ":0.1.0", so it could never scale the servers to zero."""
    pods = dict(pod_specs(objects(*INSTALLATIONS["eks"])))
    images = {
        name: {container["image"].rpartition(":")[0] for container in pod["containers"]}
        for name, pod in pods.items()
        if not name.startswith("ConfigMap")  # the controller sets the registry of these Jobs
    }
    registry = "1234.dkr.ecr.us-east-1.amazonaws.com"
    assert images["CronJob pyrite-vllm-lease"] == images["Deployment pyrite-controller"]
    assert set().union(*images.values()) == {
        f"{registry}/pyrite-controller",
        f"{registry}/pyrite-worker",
        "vllm/vllm-openai",
    }


def test_cpu_stages_do_not_pull_the_cuda_image(tmp_path: Path) -> None:
    worker = "1234.dkr.ecr.us-east-1.amazonaws.com/pyrite-worker:"
    for stage, job in eks_jobs(tmp_path).items():
        pod = job["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert container["image"].startswith(worker), stage
        assert container["image"].endswith("-cuda") == claims_gpu(pod), stage


def test_the_judge_on_eks_needs_no_volume_and_no_zone() -> None:
    """Regression: volumes tied the servers to a zone. Without them, models must fit on the node's disk of 200 GiB."""
    spec = get_object(objects(*INSTALLATIONS["eks"]), "StatefulSet")["spec"]
    pod = spec["template"]["spec"]
    assert "volumeClaimTemplates" not in spec
    assert "zone" not in str(pod)
    [requests] = [container["resources"]["requests"] for container in pod["containers"]]
    usable = 200 * 0.9 - 45  # kubelet evicts at 90%; the images of vLLM and of the CUDA worker take about 45 GB
    assert 4 * int(requests["ephemeral-storage"].removesuffix("Gi")) <= usable


@pytest.mark.parametrize("persistence", ["true", "false"])
def test_servers_may_be_on_several_nodes(persistence: str, tmp_path: Path) -> None:
    """Eight servers need two nodes of four GPUs. Nothing that they share ties them to one node."""
    more = ("--set=server.replicas=8", f"--set=server.persistence.enabled={persistence}")
    resources = objects(*INSTALLATIONS["eks"], *more)
    spec = get_object(resources, "StatefulSet")["spec"]
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {"node.kubernetes.io/instance-type": "g5.12xlarge"}
    assert not {"affinity", "topologySpreadConstraints", "hostNetwork"} & pod.keys()
    assert all("emptyDir" in volume for volume in pod["volumes"]), "a volume of its own, or one for each replica"
    assert len(spec.get("volumeClaimTemplates", [])) == (persistence == "true")
    assert not [one for one in resources if one["kind"] == "PersistentVolumeClaim"]
    loaded = read_settings(resources, tmp_path)
    urls = [f"http://pyrite-vllm-{i}.pyrite-vllm:8000" for i in range(8)]
    assert (loaded.server and loaded.server.replicas, loaded.judge.urls) == (8, urls)
    config = manifests.run_config(RUN, loaded)["data"]["run.yaml"]
    assert yaml.safe_load(config)["resources"]["judge_urls"] == urls


@installations
def test_no_pod_is_evicted_for_filling_its_volumes(values: tuple[str, ...]) -> None:
    """A pod whose emptyDir volumes exceed its limit of ephemeral storage is evicted."""
    for name, pod in pod_specs(objects(*values)):
        sizes = [one["emptyDir"] for one in pod["volumes"] if "emptyDir" in one] if "volumes" in pod else []
        used = sum(in_mib(one["sizeLimit"]) for one in sizes if one.get("medium") != "Memory")
        limits = [one["resources"]["limits"].get("ephemeral-storage") for one in pod["containers"]]
        assert None in limits or used <= sum(map(in_mib, limits)), name


def in_mib(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]


def test_a_disruption_budget_exists_only_for_several_servers() -> None:
    kinds = {one["kind"] for one in objects("--set=server.enabled=true")}
    assert "PodDisruptionBudget" not in kinds
    assert get_object(objects(*INSTALLATIONS["eks"]), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_the_controller_does_not_start_without_a_store() -> None:
    assert get_object(objects(), "Deployment")["spec"]["replicas"] == 0
    assert get_object(objects(*INSTALLATIONS["a laptop"]), "Deployment")["spec"]["replicas"] == 1


def test_the_chart_matches_the_code() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (about["version"], about["appVersion"]) == (version, version)
    eks = yaml.safe_load((CHART / "values-eks.yaml").read_text())
    cuda = eks["worker"]["stages"]["finetune"]["image"]["tag"]
    assert cuda == f"{version}-cuda", "the tag that images.py --gpu creates"
    pushed = f"pyrite-controller:{version} pyrite-worker:{version} pyrite-worker:{version}-cuda"
    assert pushed in " ".join((ROOT / "docs/eks.md").read_text().split())
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["worker"]["properties"]["stages"]["properties"]) == {*STAGES, "probe"}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/chart_values.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
