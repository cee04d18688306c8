"""Rendering of the chart without a cluster."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.tools import CHART, INSTALLATIONS, Object, get_object, helm, kube_score, objects, pod_specs, rendered
from pyrite.controller import manifests, settings
from pyrite.controller.resource import parse
from pyrite.plan import STAGES, Step

ROOT = CHART.parents[1]
#: Volume types that the restricted standard allows and the chart uses.
VOLUMES = ("configMap", "emptyDir", "persistentVolumeClaim")
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
    metadata = {"name": "run", "uid": "u", "generation": 1, "resourceVersion": "1"}
    metadata["creationTimestamp"] = "2026-11-23T08:00:00Z"
    run = parse({"metadata": metadata, "spec": {"source": {"kind": "sample"}}})
    loaded = read_settings(resources, tmp_path)
    jobs = [manifests.job(run, [Step(stage, 1)], "key", loaded) for stage in STAGES]
    text = "\n---\n".join(map(json.dumps, [*resources, *jobs]))  # in YAML some digests would be read as numbers
    scored = kube_score(text, "--ignore-test=container-image-pull-policy")
    assert len([name for name in scored if name.startswith("Job/")]) == len(jobs)
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
            "image": not container["image"].endswith(":latest"),
        }
        wrong += [f"{container['name']}: {rule}" for rule, passed in rules.items() if not passed]
    if pod.get("enableServiceLinks") is not False:
        wrong.append("enableServiceLinks")
    return wrong


@installations
def test_only_the_controller_has_a_token(values: tuple[str, ...]) -> None:
    resources = objects(*values)
    account = get_object(resources, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    for name, pod in pod_specs(resources):
        assert pod["automountServiceAccountToken"] is (pod.get("serviceAccountName") == account), name


def test_the_controllers_role_is_minimal() -> None:
    """No verb is added by accident or for a server that is not deployed. tests/real/cluster needs all of them."""
    expected = {
        ("pyrite.dev", "trainingruns", "list"),
        ("pyrite.dev", "trainingruns/status", "patch"),
        ("batch", "jobs", "create delete list"),
        ("", "configmaps", "create"),
        ("", "pods", "list"),
        ("", "events", "create list"),
    }
    server = {
        ("apps", "statefulsets", "get", "pyrite-vllm"),
        ("apps", "statefulsets/scale", "patch", "pyrite-vllm"),
    }
    assert permissions(objects(*INSTALLATIONS["defaults"])) == expected
    assert permissions(objects(*INSTALLATIONS["eks"])) == expected | server


def permissions(resources: list[Object]) -> set[tuple[str, ...]]:
    assert not [one for one in resources if one["kind"].startswith("ClusterRole")]
    return {
        (group, resource, " ".join(sorted(rule["verbs"])), *rule.get("resourceNames", ()))
        for rule in get_object(resources, "Role")["rules"]
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
    for name, pod in pod_specs(resources):
        if "-jobs/" not in name:
            assert pod["imagePullSecrets"] == [{"name": "seen-pull-secret"}], name


def missing_keys(default: Any, changed: Any, name: str = "") -> list[str]:
    """Dotted keys of ``default`` that ``changed`` does not contain."""
    if not isinstance(default, dict) or not isinstance(changed, dict) or name.endswith("resources."):
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


def allowed_peers(resources: list[Object], direction: str, **labels: str) -> list[tuple[Object, tuple[int, ...]]]:
    """Peers and ports that the policies allow for a pod of the release with ``labels``."""
    pod = {"app.kubernetes.io/name": "pyrite", "app.kubernetes.io/instance": "pyrite"}
    pod |= {"app.kubernetes.io/component": labels["component"]} | (
        {"pyrite.dev/stage": labels["stage"]} if "stage" in labels else {}
    )
    policies = [
        one["spec"] for one in resources if one["kind"] == "NetworkPolicy" and selects(one["spec"]["podSelector"], pod)
    ]
    assert {"Ingress", "Egress"} <= {kind for policy in policies for kind in policy["policyTypes"]}, (
        "traffic is not denied by default"
    )
    peers = {"egress": "to", "ingress": "from"}[direction]
    return [
        (peer, tuple(port["port"] for port in rule["ports"]))
        for policy in policies
        for rule in policy.get(direction, ())
        for peer in rule[peers]
    ]


def selects(selector: Object, labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", ())
    )


def allowed_ports(resources: list[Object], direction: str, **labels: str) -> set[int]:
    return {port for _, allowed in allowed_peers(resources, direction, **labels) for port in allowed}


def test_network_policies_allow_each_component_what_it_needs() -> None:
    dns, store, agent, api = {53}, {8333}, {80}, {443, 6443}
    without_judge = objects(*INSTALLATIONS["a laptop"])
    assert get_object(without_judge, "NetworkPolicy", "pyrite-default-deny")["spec"]["policyTypes"] == [
        "Ingress",
        "Egress",
    ]
    assert allowed_ports(without_judge, "egress", component="controller") == dns | store | agent | api
    assert allowed_ports(without_judge, "egress", component="worker", stage="judge") == dns | store | agent
    assert allowed_ports(without_judge, "ingress", component="worker", stage="judge") == {9100}

    served = objects("--set=store.url=s3://bucket/prefix,server.enabled=true,server.model.allowHub=false")
    assert allowed_ports(served, "egress", component="worker", stage="judge") == dns | {443, 8000} | agent
    assert allowed_ports(served, "egress", component="worker", stage="generate") == dns | {443, 8000} | agent
    assert allowed_ports(served, "egress", component="worker", stage="finetune") == dns | {443} | agent
    assert allowed_ports(served, "egress", component="vllm") == dns, "the model is on a volume"
    clients = [
        peer["podSelector"] for peer, _ in allowed_peers(served, "ingress", component="vllm") if "podSelector" in peer
    ]
    [client] = clients
    release = {"app.kubernetes.io/name": "pyrite", "app.kubernetes.io/instance": "pyrite"}
    worker = {**release, "app.kubernetes.io/component": "worker"}
    assert selects(client, {**worker, "pyrite.dev/stage": "judge"})
    assert not selects(client, {**worker, "pyrite.dev/stage": "finetune"})
    assert not selects(client, {"pyrite.dev/stage": "judge"})

    external_judge = objects(*INSTALLATIONS["your own endpoint"])
    assert allowed_ports(external_judge, "egress", component="worker", stage="judge") == dns | {443} | agent | {
        8443,
        80,
    }
    assert allowed_ports(external_judge, "egress", component="worker", stage="mine") == dns | {443} | agent

    # A server behind a Service with another targetPort, and a server that only a run's settings name.
    for urls in ("judge.urls={http://judge.example},", ""):
        runs_judge = objects(f"--set=store.url=s3://bucket/prefix,{urls}networkPolicy.judge.ports={{8000}}")
        named = {80, 8000} if urls else {8000}
        assert allowed_ports(runs_judge, "egress", component="worker", stage="judge") == dns | {443} | agent | named
        assert allowed_ports(runs_judge, "egress", component="worker", stage="mine") == dns | {443} | agent


def can_reach(resources: list[Object], address: str, port: int, **labels: str) -> bool:
    """Whether a pod of the release with ``labels`` may connect to ``address``."""
    ip = ip_address(address)
    return any(
        ip in ip_network(block["cidr"]) and not any(ip in ip_network(one) for one in block.get("except", ()))
        for peer, allowed in allowed_peers(resources, "egress", **labels)
        if port in allowed and (block := peer.get("ipBlock"))
    )


#: Private addresses of a Service, a pod, a node and an API server.
PRIVATE = ("10.96.0.1", "100.64.3.4", "172.20.0.1", "192.168.1.1")


@pytest.mark.parametrize("installation", ["eks", "your own endpoint"])
def test_access_to_s3_excludes_private_addresses(installation: str) -> None:
    """Policies match no names, so all public addresses are allowed on 443, but not an API server or a pod on 443."""
    resources = objects(*INSTALLATIONS[installation])
    mining = {"component": "worker", "stage": "mine"}
    assert can_reach(resources, "52.216.1.1", 443, **mining)
    assert [address for address in PRIVATE if can_reach(resources, address, 443, **mining)] == []
    assert [address for address in PRIVATE if not can_reach(resources, address, 443, component="controller")] == []


def test_a_private_s3_server_is_allowed_only_on_its_port() -> None:
    """The server may have a private address. `networkPolicy.store` overrides the default."""
    resources = objects(*INSTALLATIONS["a laptop"])
    mining = {"component": "worker", "stage": "mine"}
    assert can_reach(resources, "10.200.0.1", 8333, **mining)
    assert not can_reach(resources, "10.200.0.1", 443, **mining)
    assert not can_reach(resources, "52.216.1.1", 443, **mining)

    named = "--set=networkPolicy.store.to[0].ipBlock.cidr=10.0.1.0/24"
    resources = objects("--set=store.url=s3://bucket/prefix", named)
    assert can_reach(resources, "10.0.1.9", 443, **mining)
    assert not can_reach(resources, "52.216.1.1", 443, **mining)


def test_no_pod_can_reach_the_instance_metadata() -> None:
    """169.254.169.254 serves the node's credentials. Pod Identity and DNS have addresses near it and are allowed."""
    for values in INSTALLATIONS.values():
        resources = objects(*values)
        for component in ("controller", "worker", "vllm"):
            for peer, allowed in allowed_peers(resources, "egress", component=component, stage="judge"):
                block = peer.get("ipBlock", {"cidr": "127.0.0.1/32"})
                narrow = (block["cidr"], allowed) in [("169.254.170.23/32", (80,)), ("169.254.20.10/32", (53, 53))]
                safe = block["cidr"] == "127.0.0.1/32" or "169.254.0.0/16" in block.get("except", ())
                assert narrow or safe, (component, peer)


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
    assert eks["worker"]["image"]["tag"] == f"{version}-cuda", "the tag that images.py --gpu creates"
    pushed = f"pyrite-controller:{version} pyrite-worker:{version}-cuda"
    assert pushed in (ROOT / "docs/cluster.md").read_text()
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["worker"]["properties"]["stages"]["properties"]) == set(STAGES)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/chart_values.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
