"""Emulates how the EKS VPC CNI enforces network policies, which is not how Kubernetes defines them.

In Kubernetes, policies are additive: a pod may connect to what any of its policies allows. AWS's agent instead builds
one table per pod, from CIDR to ports, in which only the entry with the longest prefix counts:

- rules of all policies with the same CIDR share an entry, which joins their ports and their `except` lists;
- an entry inherits the ports of the wider entries around it, unless an `except` of the wider entry contains it;
- each `except` that has no entry of its own becomes an entry that denies everything.

So an `except` in one policy denies what another policy allows. Source: `ComputeMapEntriesFromEndpointRules` in
aws/aws-network-policy-agent, pkg/fwruleprocessor/fw_rule_processor.go (read in November 2026); issues 121 and 146 of
aws/amazon-network-policy-controller-k8s report the effect. The emulation was not compared with a real agent. It leaves
out ingress, IPv6, protocols, port ranges, and the agent's rule that a pod can always reach its own node.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any, NamedTuple

Object = dict[str, Any]
Table = dict[IPv4Network, set[int]]


class Rule(NamedTuple):
    """One peer of an egress rule as a CIDR."""

    cidr: IPv4Network
    excepts: tuple[IPv4Network, ...]
    ports: frozenset[int]


class Pod(NamedTuple):
    """Labels of a pod that policies may select as a peer. ``namespace`` is empty for the release's own."""

    labels: Mapping[str, str]
    namespace: str = ""


def egress_rules(resources: Iterable[Object], labels: Mapping[str, str], pods: Mapping[str, Pod]) -> list[Rule]:
    """The egress rules for a pod with ``labels``. ``pods`` maps addresses to the pods that selectors can match."""
    policies = [one["spec"] for one in resources if one["kind"] == "NetworkPolicy"]
    rules = [
        (peer, frozenset(port["port"] for port in rule["ports"]))
        for policy in policies
        if selects(policy["podSelector"], labels)
        for rule in policy.get("egress", ())
        for peer in rule["to"]
    ]
    return [
        Rule(_network(cidr), tuple(map(_network, excepts)), ports)
        for peer, ports in rules
        for cidr, excepts in _cidrs(peer, pods)
    ]


def kubernetes_allows(rules: Iterable[Rule], address: str, port: int) -> bool:
    """Whether any rule allows a connection, as Kubernetes defines it."""
    ip = ip_address(address)
    return any(port in rule.ports and ip in rule.cidr and not any(ip in one for one in rule.excepts) for rule in rules)


def vpc_cni_allows(rules: Iterable[Rule], address: str, port: int) -> bool:
    """Whether the agent's table allows a connection."""
    ip = ip_address(address)
    entries = [(cidr.prefixlen, ports) for cidr, ports in _table(rules).items() if ip in cidr]
    return bool(entries) and port in max(entries, key=lambda entry: entry[0])[1]


def pod_identifier(pod: str) -> str:
    """The name under which the agent stores a pod's table: `GetPodIdentifier` in pkg/utils/utils.go, one namespace."""
    return pod.rpartition("-")[0]


def _table(rules: Iterable[Rule]) -> Table:
    table: Table = {}
    excepts: dict[IPv4Network, set[IPv4Network]] = {}
    for rule in sorted(rules, key=lambda rule: rule.cidr.prefixlen):
        if rule.cidr not in table:
            first = rule.cidr.network_address  # the agent looks only at this address
            wider = [cidr for cidr in table if first in cidr]
            inherited = [table[cidr] for cidr in wider if not any(first in one for one in excepts[cidr])]
            table[rule.cidr], excepts[rule.cidr] = set().union(*inherited), set()
        table[rule.cidr] |= rule.ports
        excepts[rule.cidr] |= set(rule.excepts)
    for denied in set().union(*excepts.values()):
        table.setdefault(denied, set())
    return table


def _cidrs(peer: Object, pods: Mapping[str, Pod]) -> list[tuple[str, list[str]]]:
    if block := peer.get("ipBlock"):
        return [(block["cidr"], block.get("except", []))]
    return [
        (f"{address}/32", [])
        for address, pod in pods.items()
        if selects(peer.get("podSelector", {}), pod.labels) and _in_namespace(peer, pod)
    ]


def _in_namespace(peer: Object, pod: Pod) -> bool:
    if "namespaceSelector" not in peer:
        return not pod.namespace
    return selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": pod.namespace})


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches."""
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", ())
    )


def _network(text: str) -> IPv4Network:
    network = ip_network(text)
    assert isinstance(network, IPv4Network)
    return network
