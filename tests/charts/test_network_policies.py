"""What the release's pods may connect to, as Kubernetes defines it and as the EKS VPC CNI enforces it."""

from typing import Any

import pytest

from charts.tools import INSTALLATIONS, Object, get_object, objects
from charts.vpc_cni import Pod, egress_rules, kubernetes_allows, pod_identifier, selects, vpc_cni_allows

STORE = "--set=store.url=s3://bucket/prefix"
#: Renderings with other network settings.
NETWORKS: dict[str, tuple[str, ...]] = {
    **INSTALLATIONS,
    "model on a volume": (STORE, "--set=server.enabled=true,server.model.allowHub=false"),
    "hub and a private store": (STORE, "--set=store.endpointUrl=http://minio:9000,networkPolicy.allowHub=true"),
    "interface endpoint": (
        STORE,
        "--set=networkPolicy.store.to[0].ipBlock.cidr=10.0.1.0/24,networkPolicy.allowHub=true",
    ),
    "judge of one run": (STORE, "--set=networkPolicy.judge.ports={80}"),
    "eks, own endpoint": (*INSTALLATIONS["eks"], "--set=server.enabled=false,judge.urls={http://10.0.0.7}"),
}

RELEASE = {"app.kubernetes.io/name": "pyrite", "app.kubernetes.io/instance": "pyrite"}
CLIENTS: dict[str, dict[str, str]] = {
    "controller": {**RELEASE, "app.kubernetes.io/component": "controller"},
    **{
        stage: {**RELEASE, "app.kubernetes.io/component": "worker", "pyrite.dev/stage": stage}
        for stage in ("judge", "generate", "assess", "probe", "mine")
    },
    "lease": {**RELEASE, "app.kubernetes.io/component": "lease"},
    "vllm": {**RELEASE, "app.kubernetes.io/component": "vllm"},
}
PODS = {
    "10.0.5.53": Pod({"k8s-app": "kube-dns"}, "kube-system"),
    "10.0.7.1": Pod(CLIENTS["vllm"]),
    "10.0.9.9": Pod({"app": "other"}),
    **{f"10.0.11.{i}": Pod({f"seen-{name}": "yes"}) for i, name in enumerate(("dns", "store", "api-server", "judge"))},
}
TARGETS: dict[str, tuple[str, int]] = {
    "DNS pod": ("10.0.5.53", 53),
    "DNS Service": ("172.20.0.10", 53),
    "DNS Service, other range": ("10.100.0.10", 53),
    "S3": ("52.216.1.1", 443),
    "S3 in the VPC": ("10.0.1.9", 443),
    "own S3": ("10.200.0.1", 9000),
    "API Service": ("172.20.0.1", 443),
    "API in the VPC": ("10.0.3.4", 443),
    "public API": ("54.81.1.1", 443),
    "Pod Identity": ("169.254.170.23", 80),
    "instance metadata": ("169.254.169.254", 80),
    "vllm": ("10.0.7.1", 8000),
    "private judge": ("10.0.0.7", 80),
    "judge in other private ranges": ("192.168.1.1", 80),
    "public judge": ("34.1.1.1", 80),
    "another pod": ("10.0.9.9", 8000),
}
DNS = {"DNS pod", "DNS Service", "DNS Service, other range"}
STORE_ON_AWS = {*DNS, "S3", "public API", "Pod Identity"}  # policies cannot name S3: it is any public address on 443
API = {"API Service", "API in the VPC", "S3 in the VPC", "public API", "S3"}  # any address on 443
OWN_JUDGE = {"private judge", "judge in other private ranges", "public judge"}

#: Per rendering and client, the targets that must be reachable. All others must not be.
REACHES: dict[str, dict[str, set[str]]] = {
    "eks": {
        "controller": STORE_ON_AWS | API,
        "judge": STORE_ON_AWS | {"vllm"},
        "generate": STORE_ON_AWS | {"vllm"},
        "assess": STORE_ON_AWS | {"vllm"},
        "probe": STORE_ON_AWS | {"vllm"},
        "lease": DNS | API,
        "mine": STORE_ON_AWS,
        "vllm": DNS | {"S3", "public API"},  # Hugging Face is any public address on 443 too
    },
    "your own endpoint": {
        "controller": STORE_ON_AWS | API,
        "judge": STORE_ON_AWS | OWN_JUDGE,
        "mine": STORE_ON_AWS,
    },
    "judge of one run": {"judge": STORE_ON_AWS | OWN_JUDGE, "mine": STORE_ON_AWS},
    "eks, own endpoint": {"judge": STORE_ON_AWS | OWN_JUDGE, "mine": STORE_ON_AWS},
    "model on a volume": {"vllm": DNS},
    "hub and a private store": {
        "controller": {*DNS, "own S3", "Pod Identity", *API},
        "mine": {*DNS, "own S3", "Pod Identity", "S3", "public API"},
    },
    "interface endpoint": {"mine": {*STORE_ON_AWS, "S3 in the VPC"}},
}


@pytest.mark.parametrize(("installation", "client"), [(name, client) for name in REACHES for client in REACHES[name]])
def test_each_pod_reaches_only_what_it_needs_on_eks(installation: str, client: str) -> None:
    """Regression: the VPC CNI denied the controller's way to the API server, and workers' way to a private judge."""
    rules = egress_rules(objects(*NETWORKS[installation]), CLIENTS[client], PODS)
    assert {name for name, target in TARGETS.items() if vpc_cni_allows(rules, *target)} == REACHES[installation][client]


@pytest.mark.parametrize("installation", NETWORKS)
def test_the_vpc_cni_agrees_with_kubernetes(installation: str) -> None:
    """The policies mean the same with any network plugin, also on ports that a rule allows elsewhere."""
    resources = objects(*NETWORKS[installation])
    addresses = {*PODS, *(address for address, _ in TARGETS.values())}
    for client, labels in CLIENTS.items():
        rules = egress_rules(resources, labels, PODS)
        ports = {port for rule in rules for port in rule.ports}
        assert ports, f"{client} has no egress rule"
        wrong = [
            (client, address, port)
            for address in sorted(addresses)
            for port in ports
            if kubernetes_allows(rules, address, port) != vpc_cni_allows(rules, address, port)
        ]
        assert wrong == []
        assert not any(kubernetes_allows(rules, "169.254.169.254", port) for port in ports), "instance metadata"


@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_pods_that_share_an_identifier_have_the_same_policies(installation: str) -> None:
    """AWS's agent applies one table to all pods with one identifier. Regression: the pods of `helm test` shared one.

    AWS documents that policies may not be enforced on pods without an owner.
    """
    found: dict[str, set[str]] = {}
    for one in objects(*INSTALLATIONS[installation]):
        assert one["kind"] != "Pod", one["metadata"]["name"]
        if one["kind"] in ("Deployment", "StatefulSet", "Job"):
            labels = one["spec"]["template"]["metadata"]["labels"]
            suffix = "0" if one["kind"] == "StatefulSet" else "x7k2p"
            found.setdefault(pod_identifier(f"{one['metadata']['name']}-{suffix}"), set()).add(
                str(sorted(labels.items()))
            )
    assert len(found) >= 2
    assert {name for name, labels in found.items() if len(labels) > 1} == set()


def test_an_except_denies_what_another_rule_allows_on_eks() -> None:
    """The emulation shows the effect of issue 121: DNS in the private ranges is denied by another rule's `except`."""
    policy: dict[str, Any] = {
        "podSelector": {},
        "egress": [
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 53}]},
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}], "ports": [{"port": 443}]},
        ],
    }
    rules = egress_rules([{"kind": "NetworkPolicy", "spec": policy}], {}, {})
    assert kubernetes_allows(rules, "10.0.5.53", 53)
    assert not vpc_cni_allows(rules, "10.0.5.53", 53)
    assert vpc_cni_allows(rules, "8.8.8.8", 53)


def ingress(resources: list[Object], client: str, server: str) -> set[int]:
    """Ports of ``server`` that a pod of the release may connect to."""
    return {
        port["port"]
        for one in resources
        if one["kind"] == "NetworkPolicy" and selects(one["spec"]["podSelector"], CLIENTS[server])
        for rule in one["spec"].get("ingress", ())
        if any("podSelector" in peer and selects(peer["podSelector"], CLIENTS[client]) for peer in rule["from"])
        for port in rule["ports"]
    }


def test_only_judging_workers_may_connect_to_vllm() -> None:
    resources = objects(*INSTALLATIONS["eks"])
    deny = get_object(resources, "NetworkPolicy", "pyrite-default-deny")["spec"]
    assert deny == {"podSelector": {"matchLabels": RELEASE}, "policyTypes": ["Ingress", "Egress"]}
    found = {client: ingress(resources, client, "vllm") for client in CLIENTS}
    assert {client for client, ports in found.items() if ports == {8000}} == {"judge", "generate", "assess", "probe"}
    assert [
        client
        for client in CLIENTS
        if any(ingress(resources, client, other) for other in CLIENTS) and not found[client]
    ] == []
