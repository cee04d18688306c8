"""What the chart makes of its values, without a cluster."""

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

from charts.tools import CHART, WAYS, Object, helm, kube_score, objects, pod_specs, rendered, the
from pyrite.controller import manifests, settings
from pyrite.controller.resource import parse
from pyrite.plan import STAGES, Step

ROOT = CHART.parents[1]
#: The kinds of volume that the restricted standard allows, as far as the chart needs them.
VOLUMES = ("configMap", "emptyDir", "persistentVolumeClaim")
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@ways
def test_helm_lint_finds_nothing(way: tuple[str, ...]) -> None:
    done = helm("lint", "--strict", str(CHART), *way)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kube_score_finds_nothing_but_what_is_ignored_for_a_reason() -> None:
    """And nothing is ignored that it would not find: an exception that has outlived its reason hides the next fault."""
    ignored: set[str] = set()
    found: set[str] = set()
    for way in WAYS.values():
        text = rendered(*way)
        assert {name: checks for name, checks in kube_score(text).items() if checks} == {}
        ignored |= {check for line in re.findall(r"kube-score/ignore: (.+)", text) for check in line.split(",")}
        found |= set().union(*kube_score(text, "--disable-ignore-checks-annotations").values())
    assert ignored == found


@pytest.mark.parametrize("way", ["a laptop", "eks"])
def test_kube_score_finds_nothing_in_the_jobs_that_are_made(way: str, tmp_path: Path) -> None:
    """As the controller makes them of jobs/ and the chart's settings, beside the rest of the chart.

    Ignored: container-image-pull-policy, since tags are versions; Always would make each start depend on the registry.
    """
    found = objects(*WAYS[way])
    metadata = {"name": "run", "uid": "u", "generation": 1, "resourceVersion": "1"}
    metadata["creationTimestamp"] = "2026-11-23T08:00:00Z"
    run = parse({"metadata": metadata, "spec": {"source": {"kind": "sample"}}})
    read = read_settings(found, tmp_path)
    jobs = [manifests.job(run, [Step(stage, 1)], "key", read) for stage in STAGES]
    text = "\n---\n".join(map(json.dumps, [*found, *jobs]))  # in YAML some digests would be read as numbers
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
def test_a_wrong_value_is_refused_with_its_path(setting: str, path: str) -> None:
    done = helm("template", "pyrite", str(CHART), f"--set={setting}")
    assert done.returncode != 0
    assert path in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set=server.enabled=true,judge.urls={http://a}",), "judge.urls and server.enabled"),
        (("--set=metrics.podMonitor.enabled=true",), "this cluster has no PodMonitor"),
        (("--set=metrics.rules.enabled=true",), "this cluster has no PrometheusRule"),
        (("--set=metrics.dashboards.enabled=true",), "set metrics.rules.enabled too"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(words: tuple[str, ...], said: str) -> None:
    done = helm("template", "pyrite", str(CHART), *words)
    assert done.returncode != 0
    assert said in done.stderr


@ways
def test_every_pod_is_restricted(way: tuple[str, ...]) -> None:
    """The restricted Pod Security Standard, read from the rendering: Jobs and the pods of `helm test` too."""
    pods = dict(pod_specs(objects(*way)))
    assert len(pods) >= 1 + 1 + len(STAGES)
    assert {name: wrong for name, pod in pods.items() if (wrong := unrestricted(pod))} == {}


def unrestricted(pod: Object) -> list[str]:
    """What the restricted standard, or our own rules on top of it, would refuse in a pod."""
    wrong = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    usual = pod.get("securityContext", {})
    wrong += [f"volume {volume}" for volume in pod.get("volumes", ()) if not set(volume) <= {"name", *VOLUMES}]
    if usual.get("sysctls"):
        wrong.append("sysctls")
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        own = container.get("securityContext", {})
        both = {**usual, **own}
        capabilities = own.get("capabilities", {})
        rules = {
            "runAsNonRoot": both.get("runAsNonRoot") is True,
            "runAsUser": both.get("runAsUser") == 65532,
            "seccompProfile": both.get("seccompProfile", {}).get("type") == "RuntimeDefault",
            "privileged": not own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities": capabilities.get("drop") == ["ALL"] and not capabilities.get("add"),
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", ())),
            "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
            "requests and limits": "cpu" in container["resources"]["requests"] and container["resources"]["limits"],
            "image": not container["image"].endswith(":latest"),
        }
        wrong += [f"{container['name']}: {rule}" for rule, kept in rules.items() if not kept]
    if pod.get("enableServiceLinks") is not False:
        wrong.append("enableServiceLinks")
    return wrong


@ways
def test_only_the_controller_has_a_token(way: tuple[str, ...]) -> None:
    found = objects(*way)
    account = the(found, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    for name, pod in pod_specs(found):
        assert pod["automountServiceAccountToken"] is (pod.get("serviceAccountName") == account), name


def test_the_controller_may_do_what_the_contract_says_and_nothing_else() -> None:
    """Each verb's need is shown on a real cluster; here, that none slips in, and none for a server that is not."""
    plain = {
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
    assert granted(objects(*WAYS["defaults"])) == plain
    assert granted(objects(*WAYS["eks"])) == plain | server


def granted(found: list[Object]) -> set[tuple[str, ...]]:
    assert not [one for one in found if one["kind"].startswith("ClusterRole")]
    return {
        (group, resource, " ".join(sorted(rule["verbs"])), *rule.get("resourceNames", ()))
        for rule in the(found, "Role")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


@ways
def test_the_controller_understands_its_settings_and_jobs(way: tuple[str, ...], tmp_path: Path) -> None:
    """The controller's own reader takes both ConfigMaps: it refuses an unknown key and a missing stage."""
    found = objects(*way)
    read = read_settings(found, tmp_path)
    controller = the(found, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    store = {"PYRITE_STORE", "AWS_REGION", "AWS_ENDPOINT_URL", "PYRITE_S3_KMS_KEY"}
    assert environment(controller, *store) == environment({"env": read.worker.env}, *store)
    assert controller.get("envFrom", []) == read.worker.env_from
    assert read.instance == "pyrite"
    sets = [one for one in found if one["kind"] == "StatefulSet"]
    assert bool(sets) == (read.server is not None)
    if read.server:
        service = sets[0]["spec"]["serviceName"]
        assert read.server.stateful_set == sets[0]["metadata"]["name"]
        assert read.judge.urls == [f"http://{service}-{i}.{service}:8000" for i in range(read.server.replicas)]


def read_settings(found: list[Object], folder: Path) -> settings.Settings:
    for name in ("jobs", "settings"):
        [data] = [o["data"] for o in found if o["kind"] == "ConfigMap" and o["metadata"]["name"].endswith(f"-{name}")]
        (folder / name).mkdir()
        for file, text in data.items():
            (folder / name / file).write_text(text)
    return settings.load(folder / "settings/settings.yaml", folder / "jobs")


def environment(container: Object, *names: str) -> dict[str, Any]:
    return {one["name"]: one for one in container.get("env", ()) if one["name"] in names}


def test_every_value_arrives() -> None:
    """A value that goes nowhere is a lie (a token that never reached its pod, in another chart)."""
    way = WAYS["everything"]
    values = Path(way[1]).read_text()
    wanted = set(re.findall(r"seen-[a-z-]+", values))
    assert wanted - set(re.findall(r"seen-[a-z-]+", rendered(*way))) == set()
    untried = untouched(yaml.safe_load((CHART / "values.yaml").read_text()), yaml.safe_load(values))
    assert untried == ["judge.urls"], "what the chart's own server excludes"
    found = objects(*way)
    stateful = the(found, "StatefulSet")["spec"]
    [vllm] = stateful["template"]["spec"]["containers"]
    assert "--max-model-len=777" in vllm["args"]
    assert vllm["startupProbe"]["failureThreshold"] * vllm["startupProbe"]["periodSeconds"] >= 95
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "5Gi"}} in stateful["template"]["spec"][
        "volumes"
    ]
    assert [claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]] == ["cache"]
    key = {"secretKeyRef": {"name": "seen-judge-secret", "key": "api-key"}}
    assert environment(vllm, "VLLM_API_KEY")["VLLM_API_KEY"]["valueFrom"] == key
    for name, pod in pod_specs(found):
        if "-jobs/" not in name:
            assert pod["imagePullSecrets"] == [{"name": "seen-pull-secret"}], name


def untouched(default: Any, changed: Any, name: str = "") -> list[str]:
    """The values of ``default`` that ``changed`` says nothing about."""
    if not isinstance(default, dict) or not isinstance(changed, dict) or name.endswith("resources."):
        return []
    missing = [f"{name}{key}" for key in default if key not in changed]
    return missing + [one for key in changed for one in untouched(default.get(key), changed[key], f"{name}{key}.")]


@pytest.mark.parametrize("loads", ["server", "workers"])
def test_the_hubs_token_reaches_who_loads_from_the_hub_and_nobody_else(loads: str, tmp_path: Path) -> None:
    server = loads == "server"
    found = objects(
        "--set=store.url=s3://bucket/prefix,huggingface.existingSecret=hub,server.enabled=true",
        f"--set=server.model.allowHub={str(server).lower()},networkPolicy.allowHub={str(not server).lower()}",
    )
    reference = {"secretKeyRef": {"name": "hub", "key": "token"}}
    token, offline = {"HF_TOKEN": {"name": "HF_TOKEN", "valueFrom": reference}}, "HF_HUB_OFFLINE"
    [vllm] = the(found, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    [controller] = the(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    worker = {"env": read_settings(found, tmp_path).worker.env}
    has, has_not = (vllm, worker) if server else (worker, vllm)
    assert environment(has, "HF_TOKEN", offline) == token
    assert environment(has_not, "HF_TOKEN", offline) == {offline: {"name": offline, "value": "1"}}
    assert environment(controller, "HF_TOKEN") == {}


def test_everything_that_vllm_writes_goes_to_a_writable_place() -> None:
    """Its file system is read-only: a cache in a home folder that cannot be written crashes it."""
    pod = the(objects(*WAYS["eks"]), "StatefulSet")["spec"]["template"]["spec"]
    [vllm] = pod["containers"]
    places = [mount["mountPath"] for mount in vllm["volumeMounts"] if not mount.get("readOnly")]
    assert places == ["/cache", "/tmp", "/dev/shm"]
    names = """HOME HF_HOME VLLM_CACHE_ROOT VLLM_CONFIG_ROOT XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME
        TRITON_CACHE_DIR TORCHINDUCTOR_CACHE_DIR CUDA_CACHE_PATH FLASHINFER_WORKSPACE_BASE NUMBA_CACHE_DIR TMPDIR"""
    found = environment(vllm, *names.split())
    assert sorted(found) == sorted(names.split())
    assert all(one["value"].startswith(("/cache", "/tmp")) for one in found.values())
    assert environment(vllm, "USER"), "torch asks for the user's name, and uid 65532 has none"


def test_a_new_version_of_the_chart_leaves_vllms_pods_and_claims_as_they_are(tmp_path: Path) -> None:
    """Else each upgrade would load the model anew, or fail: a claim template cannot be changed."""
    newer = tmp_path / "pyrite"
    shutil.copytree(CHART, newer)
    about = yaml.safe_load((newer / "Chart.yaml").read_text())
    (newer / "Chart.yaml").write_text(yaml.safe_dump({**about, "version": "9.9.9", "appVersion": "9.9.9"}))
    old, new = (the(objects(*WAYS["eks"], chart=c), "StatefulSet") for c in (CHART, newer))
    assert old["metadata"]["labels"] != new["metadata"]["labels"]
    assert old["spec"] == new["spec"]


def reached(found: list[Object], direction: str, **labels: str) -> list[tuple[Object, tuple[int, ...]]]:
    """The peers and ports that the policies allow a pod of the release with ``labels``."""
    pod = {"app.kubernetes.io/name": "pyrite", "app.kubernetes.io/instance": "pyrite"}
    pod |= {"app.kubernetes.io/component": labels["component"]} | (
        {"pyrite.dev/stage": labels["stage"]} if "stage" in labels else {}
    )
    policies = [
        one["spec"] for one in found if one["kind"] == "NetworkPolicy" and selects(one["spec"]["podSelector"], pod)
    ]
    assert {"Ingress", "Egress"} <= {kind for policy in policies for kind in policy["policyTypes"]}, (
        "nothing is refused"
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


def ports(found: list[Object], direction: str, **labels: str) -> set[int]:
    return {port for _, allowed in reached(found, direction, **labels) for port in allowed}


def test_network_policies_allow_each_component_what_it_needs() -> None:
    dns, store, agent, api = {53}, {8333}, {80}, {443, 6443}
    alone = objects(*WAYS["a laptop"])
    assert the(alone, "NetworkPolicy", "pyrite-default-deny")["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert ports(alone, "egress", component="controller") == dns | store | agent | api
    assert ports(alone, "egress", component="worker", stage="judge") == dns | store | agent
    assert ports(alone, "ingress", component="worker", stage="judge") == {9100}

    served = objects("--set=store.url=s3://bucket/prefix,server.enabled=true,server.model.allowHub=false")
    assert ports(served, "egress", component="worker", stage="judge") == dns | {443, 8000} | agent
    assert ports(served, "egress", component="worker", stage="generate") == dns | {443, 8000} | agent
    assert ports(served, "egress", component="worker", stage="finetune") == dns | {443} | agent
    assert ports(served, "egress", component="vllm") == dns, "its model is on its volume"
    asking = [peer["podSelector"] for peer, _ in reached(served, "ingress", component="vllm") if "podSelector" in peer]
    [who] = asking
    release = {"app.kubernetes.io/name": "pyrite", "app.kubernetes.io/instance": "pyrite"}
    worker = {**release, "app.kubernetes.io/component": "worker"}
    assert selects(who, {**worker, "pyrite.dev/stage": "judge"})
    assert not selects(who, {**worker, "pyrite.dev/stage": "finetune"})
    assert not selects(who, {"pyrite.dev/stage": "judge"})

    elsewhere = objects(*WAYS["your own endpoint"])
    assert ports(elsewhere, "egress", component="worker", stage="judge") == dns | {443} | agent | {8443, 80}
    assert ports(elsewhere, "egress", component="worker", stage="mine") == dns | {443} | agent

    # A server behind a Service that translates, and one that only a run names.
    for urls in ("judge.urls={http://judge.example},", ""):
        runs_own = objects(f"--set=store.url=s3://bucket/prefix,{urls}networkPolicy.judge.ports={{8000}}")
        named = {80, 8000} if urls else {8000}
        assert ports(runs_own, "egress", component="worker", stage="judge") == dns | {443} | agent | named
        assert ports(runs_own, "egress", component="worker", stage="mine") == dns | {443} | agent


def reaches(found: list[Object], address: str, port: int, **labels: str) -> bool:
    """Whether a pod of the release with ``labels`` is let out to ``address``."""
    at = ip_address(address)
    return any(
        at in ip_network(block["cidr"]) and not any(at in ip_network(one) for one in block.get("except", ()))
        for peer, allowed in reached(found, "egress", **labels)
        if port in allowed and (block := peer.get("ipBlock"))
    )


#: A Service, a pod, a node and an API server: at addresses that are not the internet's.
PRIVATE = ("10.96.0.1", "100.64.3.4", "172.20.0.1", "192.168.1.1")


@pytest.mark.parametrize("way", ["eks", "your own endpoint"])
def test_the_way_to_awss_s3_is_no_way_to_a_neighbour(way: str) -> None:
    """A policy knows no names, so all that is public is open on 443; an API server or a pod on 443 is not."""
    found = objects(*WAYS[way])
    mining = {"component": "worker", "stage": "mine"}
    assert reaches(found, "52.216.1.1", 443, **mining)
    assert [address for address in PRIVATE if reaches(found, address, 443, **mining)] == []
    assert [address for address in PRIVATE if not reaches(found, address, 443, component="controller")] == []


def test_an_s3_server_of_ones_own_is_reached_on_its_port_alone() -> None:
    """It may be next door. What `networkPolicy.store` says goes before both."""
    found = objects(*WAYS["a laptop"])
    mining = {"component": "worker", "stage": "mine"}
    assert reaches(found, "10.200.0.1", 8333, **mining)
    assert not reaches(found, "10.200.0.1", 443, **mining)
    assert not reaches(found, "52.216.1.1", 443, **mining)

    named = "--set=networkPolicy.store.to[0].ipBlock.cidr=10.0.1.0/24"
    found = objects("--set=store.url=s3://bucket/prefix", named)
    assert reaches(found, "10.0.1.9", 443, **mining)
    assert not reaches(found, "52.216.1.1", 443, **mining)


def test_nobody_reaches_the_nodes_metadata() -> None:
    """169.254.169.254 hands the node's own role to whoever asks; beside it, Pod Identity and DNS are allowed."""
    for way in WAYS.values():
        found = objects(*way)
        for component in ("controller", "worker", "vllm"):
            for peer, allowed in reached(found, "egress", component=component, stage="judge"):
                block = peer.get("ipBlock", {"cidr": "127.0.0.1/32"})
                narrow = (block["cidr"], allowed) in [("169.254.170.23/32", (80,)), ("169.254.20.10/32", (53, 53))]
                safe = block["cidr"] == "127.0.0.1/32" or "169.254.0.0/16" in block.get("except", ())
                assert narrow or safe, (component, peer)


def test_a_disruption_budget_only_where_there_is_more_than_one_server() -> None:
    kinds = {one["kind"] for one in objects("--set=server.enabled=true")}
    assert "PodDisruptionBudget" not in kinds
    assert the(objects(*WAYS["eks"]), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_without_a_store_no_controller_is_started() -> None:
    assert the(objects(), "Deployment")["spec"]["replicas"] == 0
    assert the(objects(*WAYS["a laptop"]), "Deployment")["spec"]["replicas"] == 1


def test_the_chart_is_in_step_with_the_code() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (about["version"], about["appVersion"]) == (version, version)
    eks = yaml.safe_load((CHART / "values-eks.yaml").read_text())
    assert eks["worker"]["image"]["tag"] == f"{version}-cuda", "what images.py --gpu calls it"
    pushed = f"pyrite-controller:{version} pyrite-worker:{version}-cuda"
    assert pushed in (ROOT / "docs/cluster.md").read_text()
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["worker"]["properties"]["stages"]["properties"]) == set(STAGES)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/chart_values.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
