"""The chart's network policies and RBAC rules, tried in a namespace with the chart installed.

The policies select only the release's pods. Other pods of the namespace cannot connect to these, but can connect to all
other addresses (DNS, S3, the API server), which shows that the probes work.
"""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest

from charts.tools import helm
from real.cluster.faults import CLUSTER_COMMAND
from real.cluster.release import Object, Release, kubectl, wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

#: No stage runs here: only the controller's API calls count.
VALUES: Object = {
    "worker": {
        "image": {"repository": "localhost/pyrite-worker"},
        "stages": {"prepare": {"pod": {"nodeSelector": {"no": "node"}}}},
    },
    "server": {"enabled": True, "model": {"allowHub": False}},
    "networkPolicy": {
        "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
        "judge": {"to": [{"podSelector": {"matchLabels": {"app": "own-judge"}}}], "ports": [5555]},
    },
}

CONTROLLER = "app.kubernetes.io/component=controller"
OURS = {"app.kubernetes.io/name": "pyrite", "app.kubernetes.io/instance": "pyrite"}
WORKER = {**OURS, "app.kubernetes.io/component": "worker"}
VLLM = {**OURS, "app.kubernetes.io/component": "vllm"}

#: The pods that connect, and the pods to connect to.
CLIENTS: dict[str, dict[str, str]] = {
    "judge": {**WORKER, "pyrite.dev/stage": "judge"},
    "generate": {**WORKER, "pyrite.dev/stage": "generate"},
    "mine": {**WORKER, "pyrite.dev/stage": "mine"},
    "vllm": VLLM,
    "other": {},
    "prometheus": {"app": "prometheus"},
}
TARGETS: dict[str, dict[str, str]] = {
    "target-vllm": VLLM,
    "target-worker": {**WORKER, "pyrite.dev/stage": "judge"},
    "target-other": {},
    "own-judge": {"app": "own-judge"},
}

#: The open ports of each pod: vLLM's, the one for metrics, and an unrelated one.
PORTS = (8000, 9100, 5555)

#: Addresses that no policy of the release protects.
NODES = {"node's link-local", "node's port 443"}
UNRESTRICTED = {"dns", "s3", "api", "api, by its own address", "another pod", "own judge's Service", *NODES}

REACHES: dict[str, set[str]] = {
    "judge": {"dns", "s3", "vllm", "own judge's Service"},
    "generate": {"dns", "s3", "vllm", "own judge's Service"},
    "mine": {"dns", "s3"},
    "vllm": {"dns"},
    "controller": {
        *("dns", "s3", "api", "api, by its own address"),
        "node's port 443",  # the API server may be at any address: networkPolicy.apiServer
        *("controller's metrics", "controller's health"),  # policies do not apply between a pod and itself
    },
    "other": UNRESTRICTED,
    "prometheus": UNRESTRICTED | {"vllm", "worker's metrics", "controller's metrics"},
}

#: A probe needs no accept(): the kernel completes the connection.
LISTEN = f"""
import socket, time
open = [socket.create_server(("", port)) for port in {PORTS}]
time.sleep(3600)
"""
PROBE = """
import json, socket, sys
found = []
for name, (host, port) in json.loads(sys.argv[1]).items():
    try:
        if port:
            socket.create_connection((host, port), 4).close()
        else:
            socket.getaddrinfo(host, 443)
        found.append(name)
    except OSError:
        pass
print(json.dumps(found))
"""

#: All permissions of the controller, and where a missing one is reported: in the run's status, or in the log if it
#: does not concern a single run.
PERMISSIONS = {
    "list trainingruns": "log",
    "patch trainingruns/status": "log",
    "create jobs": "status",
    "list jobs": "log",
    "delete jobs": "status",
    "patch jobs": "status",
    "create configmaps": "status",
    "list pods": "log",
    "create events": "log",
    "list events": "log",
    "get statefulsets": "log",
    "patch statefulsets/scale": "log",
    "patch leases": "log",
}
LEASE_PERMISSIONS = {"get leases", "get statefulsets", "patch statefulsets/scale"}
#: Used only after hours, and while the servers are up; tests/controller/test_api.py covers them.
UNUSED = ("patch jobs", "patch leases")
FORBIDDEN = [
    *("get secrets", "list secrets", "get configmaps", "list configmaps", "patch configmaps", "delete configmaps"),
    *("get pods", "delete pods", "create pods", "create pods/exec", "create pods/portforward", "get pods/log"),
    *("get jobs", "update jobs", "deletecollection jobs", "watch jobs"),
    *("get trainingruns", "create trainingruns", "update trainingruns", "patch trainingruns", "delete trainingruns"),
    *("update trainingruns/status", "delete events", "update statefulsets", "patch statefulsets"),
    *("delete statefulsets", "list statefulsets", "create statefulsets", "update statefulsets/scale"),
    *("create serviceaccounts/token", "impersonate users", "create roles", "patch roles", "create rolebindings"),
    *("list networkpolicies", "delete networkpolicies", "get persistentvolumeclaims", "list nodes", "list namespaces"),
]


def pod(name: str, labels: dict[str, str]) -> Object:
    """A restricted pod with the worker's image that listens on PORTS."""
    container = {
        "name": "pod",
        "image": "localhost/pyrite-worker:0.1.0",
        "command": ["python", "-c", LISTEN],
        "resources": {"requests": {"cpu": "1m", "memory": "16Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec = {
        "containers": [container],
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


#: Replaces 169.254.169.254, a node's metadata service, which may be in use on this machine.
LINK_LOCAL = "169.254.77.77"


@pytest.fixture(scope="module")
def node_listeners(release: Release) -> Iterator[dict[str, tuple[str, int]]]:
    """Two listeners on the node: a link-local address with the store's port, and the store's address with port 443."""
    if not CLUSTER_COMMAND.is_file():
        pytest.skip("needs a node on this machine")
    s3 = urlsplit(release.environment["AWS_ENDPOINT_URL"])
    found = {"node's link-local": (LINK_LOCAL, s3.port or 80), "node's port 443": (str(s3.hostname), 443)}
    subprocess.run(["ip", "address", "replace", f"{LINK_LOCAL}/32", "dev", "lo"], check=True)
    with ExitStack() as stack:
        for address in found.values():
            stack.enter_context(socket.create_server(address))
        yield found
    subprocess.run(["ip", "address", "del", f"{LINK_LOCAL}/32", "dev", "lo"], check=True)


@pytest.fixture(scope="module")
def targets(release: Release, node_listeners: dict[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    """All addresses to try, once the pods run and policies apply. Port 0: only resolve the name."""
    pods = {**CLIENTS, **TARGETS}
    ports = {"selector": {"app": "own-judge"}, "ports": [{"port": 80, "targetPort": 5555}]}
    judge_service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "own-judge"}, "spec": ports}
    objects = [*(pod(name, labels) for name, labels in pods.items()), judge_service]
    listed = {"apiVersion": "v1", "kind": "List", "items": objects}
    kubectl("-n", release.namespace, "apply", "-f", "-", stdin=json.dumps(listed))
    kubectl("-n", release.namespace, "wait", "pod", *pods, "--for=condition=Ready", "--timeout=120s", seconds=150)
    time.sleep(3)  # a policy takes a moment to apply to a new pod
    ips = {one["metadata"]["name"]: one["status"]["podIP"] for one in release.items("pods") if "podIP" in one["status"]}
    (controller,) = release.get("pods", "-l", CONTROLLER)["items"]
    service = json.loads(kubectl("-n", "default", "get", "service", "kubernetes", "-o", "json"))["spec"]
    (slice_,) = json.loads(
        kubectl("-n", "default", "get", "endpointslices", "-l", "kubernetes.io/service-name=kubernetes", "-o", "json")
    )["items"]
    s3 = urlsplit(release.environment["AWS_ENDPOINT_URL"])
    return {
        "dns": ("kubernetes.default.svc.cluster.local", 0),
        "s3": (str(s3.hostname), s3.port or 80),
        "api": (service["clusterIP"], service["ports"][0]["port"]),
        "api, by its own address": (slice_["endpoints"][0]["addresses"][0], slice_["ports"][0]["port"]),
        "vllm": (ips["target-vllm"], 8000),
        "vllm's other ports": (ips["target-vllm"], 5555),
        "worker's metrics": (ips["target-worker"], 9100),
        "worker's other ports": (ips["target-worker"], 5555),
        "controller's metrics": (controller["status"]["podIP"], 9100),
        "controller's health": (controller["status"]["podIP"], 8080),
        "another pod": (ips["target-other"], 5555),
        "own judge's Service": (release.get("service", "own-judge")["spec"]["clusterIP"], 80),
        **node_listeners,
    }


@pytest.mark.parametrize("client", REACHES)
def test_each_pod_reaches_only_what_it_needs(
    release: Release, targets: dict[str, tuple[str, int]], client: str
) -> None:
    """No policy opens the `other ports`; each other address is reached by at least one pod, so the address works."""
    name, container = ("deploy/pyrite-controller", "controller") if client == "controller" else (client, "pod")
    command = ["exec", name, "-c", container, "--", "python", "-c", PROBE, json.dumps(targets)]
    found = json.loads(kubectl("-n", release.namespace, *command))
    assert set(found) == REACHES[client]


def test_helm_test_passes(release: Release) -> None:
    """A judge pod can use the store, and the controller's account the API server."""
    done = helm("test", "pyrite", "-n", release.namespace, "--timeout=120s")
    assert done.returncode == 0, done.stdout + done.stderr
    logs = {name: kubectl("-n", release.namespace, "logs", f"job/pyrite-test-{name}") for name in ("store", "api")}
    assert "is readable and writable" in logs["store"]
    assert "the controller's account can list TrainingRuns" in logs["api"]


def is_allowed(release: Release, account: str, permission: str, namespace: str | None = None) -> bool:
    verb, _, resource = permission.partition(" ")
    resource, _, subresource = resource.partition("/")
    if (verb, resource, subresource) in (
        ("get", "statefulsets", ""),
        ("patch", "statefulsets", "scale"),
        ("patch", "leases", ""),
    ):
        resource += "/pyrite-vllm"
    output = kubectl(
        *("-n", namespace or release.namespace, "auth", "can-i", verb, resource),
        *([f"--subresource={subresource}"] if subresource else []),
        f"--as=system:serviceaccount:{release.namespace}:{account}",
        check=False,
    )
    answer = output.splitlines()[0].partition(" ")[0]
    assert answer in ("yes", "no"), output
    return answer == "yes"


def rules(release: Release, account: str) -> set[str]:
    """All permissions of an account in the namespace, as the API server lists them; without the review API itself."""
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
    found = json.loads(
        kubectl(
            *("create", "--raw", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "-f", "-"),
            f"--as=system:serviceaccount:{release.namespace}:{account}",
            stdin=json.dumps({**review, "spec": {"namespace": release.namespace}}),
        )
    )
    return {
        f"{verb} {resource}"
        for rule in found["status"]["resourceRules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        if not resource.startswith("selfsubject")
    }


def test_each_account_has_exactly_its_permissions(release: Release) -> None:
    """Compare the complete list of each account, and check single verbs in this and in another namespace."""
    assert rules(release, "pyrite-controller") == set(PERMISSIONS)
    for account in ("pyrite-worker", "pyrite-vllm"):
        assert rules(release, account) == set()
    assert rules(release, "pyrite-vllm-lease") == LEASE_PERMISSIONS
    assert [permission for permission in PERMISSIONS if not is_allowed(release, "pyrite-controller", permission)] == []
    assert [permission for permission in FORBIDDEN if is_allowed(release, "pyrite-controller", permission)] == []
    assert [
        permission for permission in PERMISSIONS if is_allowed(release, "pyrite-controller", permission, "default")
    ] == []
    assert [permission for permission in PERMISSIONS if is_allowed(release, "pyrite-worker", permission)] == []


def set_rules(release: Release, rules_: list[Object]) -> None:
    patch = json.dumps({"rules": [rule for rule in rules_ if rule["verbs"]]})  # a rule without verbs is invalid
    kubectl("-n", release.namespace, "patch", "role", "pyrite-controller", "--type=merge", "-p", patch)


@contextmanager
def without_permission(release: Release, permission: str) -> Iterator[None]:
    """Remove a verb from the controller's Role during the body."""
    verb, _, resource = permission.partition(" ")
    original = release.get("role", "pyrite-controller")["rules"]
    set_rules(
        release,
        [
            {**rule, "verbs": [one for one in rule["verbs"] if [one, *rule["resources"]] != [verb, resource]]}
            for rule in original
        ],
    )
    try:
        assert not is_allowed(release, "pyrite-controller", permission)
        yield
    finally:
        set_rules(release, original)


def log(release: Release) -> str:
    text: str = kubectl("-n", release.namespace, "logs", "deploy/pyrite-controller", "--tail=-1")
    return text


def forbid_pods(release: Release) -> None:
    """Create a quota that allows no pods."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    kubectl("-n", release.namespace, "apply", "-f", "-", stdin=json.dumps(quota))


def start(release: Release, run: str) -> None:
    release.apply(run, {"source": {"kind": "sample"}})
    release.wait(run, "Running", seconds=60)


@pytest.mark.parametrize("permission", [one for one in PERMISSIONS if one not in UNUSED])
def test_controller_needs_each_of_its_permissions(release: Release, permission: str) -> None:
    """Without a permission, the run's status or the log names it. With the permission, the run continues."""
    verb, _, resource = permission.partition(" ")
    run = permission.translate(str.maketrans(" /", "--"))
    message = f'cannot {verb} resource "{resource}"'
    assert message not in log(release)
    if permission == "delete jobs":
        start(release, run)
    if permission == "list events":
        forbid_pods(release)
        start(release, run)
    with without_permission(release, permission):
        release.apply(run, {"source": {"kind": "sample"}, "cancel": permission == "delete jobs"})
        if permission == "patch statefulsets/scale":
            kubectl("-n", release.namespace, "delete", "trainingruns", "--all")
            kubectl("-n", release.namespace, "scale", "statefulset", "pyrite-vllm", "--replicas=1")
        wait_until(f"the log has {message!r}", lambda: message in log(release), 90)
        if PERMISSIONS[permission] == "status":
            assert message in release.status(run)["message"]
    if permission == "patch statefulsets/scale":
        server = ["statefulset", "pyrite-vllm"]
        wait_until("the server is at zero again", lambda: not release.get(*server)["spec"]["replicas"], 60)
        return
    if permission == "list events":
        wait_until("the quota is named", lambda: "exceeded quota" in release.status(run).get("message", ""), 60)
        kubectl("-n", release.namespace, "delete", "resourcequota", "none")
    if permission != "delete jobs":
        release.wait(run, "Running", seconds=60)
        release.edit(run, cancel=True)
    release.wait(run, "Cancelled", seconds=90)
