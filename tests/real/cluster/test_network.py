"""Who reaches whom in a namespace with the chart installed, and who may ask what of the API server.

A release's policies select its own pods. So a stranger in the namespace reaches none of those; what else it reaches
(DNS, S3, the API server's address) is not the release's to refuse, and shows that the probes can succeed.
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
from real.cluster.faults import UP
from real.cluster.place import Object, Place, kubectl, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

#: No stage is ever run here: what counts is what the controller asks for.
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

#: The pods that look, and those that are looked for.
LOOKING: dict[str, dict[str, str]] = {
    "judge": {**WORKER, "pyrite.dev/stage": "judge"},
    "generate": {**WORKER, "pyrite.dev/stage": "generate"},
    "mine": {**WORKER, "pyrite.dev/stage": "mine"},
    "vllm": VLLM,
    "stranger": {},
    "prometheus": {"app": "prometheus"},
}
FOUND: dict[str, dict[str, str]] = {
    "the-vllm": VLLM,
    "the-worker": {**WORKER, "pyrite.dev/stage": "judge"},
    "the-stranger": {},
    "own-judge": {"app": "own-judge"},
}

#: What each of them holds open: a vLLM server's port, that of metrics, and one that is nobody's.
PORTS = (8000, 9100, 5555)

#: What nobody refuses: no policy of the release's stands between these.
NODES = {"node's link-local", "node's port 443"}
ANYBODY = {"dns", "s3", "api", "api, by its own address", "a stranger", "own judge's Service", *NODES}

REACHES: dict[str, set[str]] = {
    "judge": {"dns", "s3", "vllm", "own judge's Service"},
    "generate": {"dns", "s3", "vllm", "own judge's Service"},
    "mine": {"dns", "s3"},
    "vllm": {"dns"},
    "controller": {
        *("dns", "s3", "api", "api, by its own address"),
        "node's port 443",  # the API server may be at any address: networkPolicy.apiServer
        *("controller's metrics", "controller's health"),  # no policy stands between a pod and itself
    },
    "stranger": ANYBODY,
    "prometheus": ANYBODY | {"vllm", "worker's metrics", "controller's metrics"},
}

#: A connection that the kernel takes without anybody accepting it is enough for a probe.
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

#: All that the controller may do, and where it is told that a verb is missing: in the run's status, or in the log where
#: no run can be shown for it.
VERBS = {
    "list trainingruns": "log",
    "patch trainingruns/status": "log",
    "create jobs": "status",
    "list jobs": "log",
    "delete jobs": "status",
    "create configmaps": "status",
    "list pods": "log",
    "create events": "log",
    "list events": "log",
    "get statefulsets": "log",
    "patch statefulsets/scale": "log",
}
TEMPTING = [
    *("get secrets", "list secrets", "get configmaps", "list configmaps", "patch configmaps", "delete configmaps"),
    *("get pods", "delete pods", "create pods", "create pods/exec", "create pods/portforward", "get pods/log"),
    *("get jobs", "update jobs", "patch jobs", "deletecollection jobs", "watch jobs"),
    *("get trainingruns", "create trainingruns", "update trainingruns", "patch trainingruns", "delete trainingruns"),
    *("update trainingruns/status", "delete events", "update statefulsets", "patch statefulsets"),
    *("delete statefulsets", "list statefulsets", "create statefulsets", "update statefulsets/scale"),
    *("create serviceaccounts/token", "impersonate users", "create roles", "patch roles", "create rolebindings"),
    *("list networkpolicies", "delete networkpolicies", "get persistentvolumeclaims", "list nodes", "list namespaces"),
]


def pod(name: str, labels: dict[str, str]) -> Object:
    """A restricted pod of the worker's image that listens on PORTS."""
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


#: Stands in for 169.254.169.254, from which a node hands out its own rights: this machine's own may be in use.
LINK_LOCAL = "169.254.77.77"


@pytest.fixture(scope="module")
def of_the_node(place: Place) -> Iterator[dict[str, tuple[str, int]]]:
    """Two listeners of the node's: where the metadata are, on the store's own port; and on 443, beside the store."""
    if not UP.is_file():
        pytest.skip("needs a node on this machine")
    s3 = urlsplit(place.environment["AWS_ENDPOINT_URL"])
    found = {"node's link-local": (LINK_LOCAL, s3.port or 80), "node's port 443": (str(s3.hostname), 443)}
    subprocess.run(["ip", "address", "replace", f"{LINK_LOCAL}/32", "dev", "lo"], check=True)
    with ExitStack() as stack:
        for address in found.values():
            stack.enter_context(socket.create_server(address))
        yield found
    subprocess.run(["ip", "address", "del", f"{LINK_LOCAL}/32", "dev", "lo"], check=True)


@pytest.fixture(scope="module")
def targets(place: Place, of_the_node: dict[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    """What there is to reach, once all pods run and policies hold for them. Port 0: a name, not a connection."""
    pods = {**LOOKING, **FOUND}
    ports = {"selector": {"app": "own-judge"}, "ports": [{"port": 80, "targetPort": 5555}]}
    service_of_it = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "own-judge"}, "spec": ports}
    made = [*(pod(name, labels) for name, labels in pods.items()), service_of_it]
    listed = {"apiVersion": "v1", "kind": "List", "items": made}
    kubectl("-n", place.namespace, "apply", "-f", "-", stdin=json.dumps(listed))
    kubectl("-n", place.namespace, "wait", "pod", *pods, "--for=condition=Ready", "--timeout=120s", seconds=150)
    time.sleep(3)  # a policy takes a moment to reach a new pod
    at = {one["metadata"]["name"]: one["status"]["podIP"] for one in place.items("pods") if "podIP" in one["status"]}
    (controller,) = place.get("pods", "-l", CONTROLLER)["items"]
    service = json.loads(kubectl("-n", "default", "get", "service", "kubernetes", "-o", "json"))["spec"]
    (slice_,) = json.loads(
        kubectl("-n", "default", "get", "endpointslices", "-l", "kubernetes.io/service-name=kubernetes", "-o", "json")
    )["items"]
    s3 = urlsplit(place.environment["AWS_ENDPOINT_URL"])
    return {
        "dns": ("kubernetes.default.svc.cluster.local", 0),
        "s3": (str(s3.hostname), s3.port or 80),
        "api": (service["clusterIP"], service["ports"][0]["port"]),
        "api, by its own address": (slice_["endpoints"][0]["addresses"][0], slice_["ports"][0]["port"]),
        "vllm": (at["the-vllm"], 8000),
        "vllm's other ports": (at["the-vllm"], 5555),
        "worker's metrics": (at["the-worker"], 9100),
        "worker's other ports": (at["the-worker"], 5555),
        "controller's metrics": (controller["status"]["podIP"], 9100),
        "controller's health": (controller["status"]["podIP"], 8080),
        "a stranger": (at["the-stranger"], 5555),
        "own judge's Service": (place.get("service", "own-judge")["spec"]["clusterIP"], 80),
        **of_the_node,
    }


@pytest.mark.parametrize("who", REACHES)
def test_who_reaches_whom(place: Place, targets: dict[str, tuple[str, int]], who: str) -> None:
    """Each refusal has a twin: the same listener's, reached by another. The controller is the real one."""
    name, container = ("deploy/pyrite-controller", "controller") if who == "controller" else (who, "pod")
    words = ["exec", name, "-c", container, "--", "python", "-c", PROBE, json.dumps(targets)]
    found = json.loads(kubectl("-n", place.namespace, *words))
    assert set(found) == REACHES[who]


def test_helm_test(place: Place) -> None:
    """The store is reached as a judge pod, and the API server as the controller."""
    done = helm("test", "pyrite", "-n", place.namespace, "--logs", "--timeout=120s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "can be written and read" in done.stdout
    assert "the controller's account can list TrainingRuns" in done.stdout


def may(place: Place, account: str, what: str, namespace: str | None = None) -> bool:
    verb, _, resource = what.partition(" ")
    resource, _, subresource = resource.partition("/")
    if resource.startswith("statefulsets") and (verb, subresource) in (("get", ""), ("patch", "scale")):
        resource += "/pyrite-vllm"
    said = kubectl(
        *("-n", namespace or place.namespace, "auth", "can-i", verb, resource),
        *([f"--subresource={subresource}"] if subresource else []),
        f"--as=system:serviceaccount:{place.namespace}:{account}",
        check=False,
    )
    answer = said.splitlines()[0].partition(" ")[0]
    assert answer in ("yes", "no"), said
    return answer == "yes"


def rules(place: Place, account: str) -> set[str]:
    """All that an account may do in the namespace, but to ask this; as the API server says."""
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
    found = json.loads(
        kubectl(
            *("create", "--raw", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "-f", "-"),
            f"--as=system:serviceaccount:{place.namespace}:{account}",
            stdin=json.dumps({**review, "spec": {"namespace": place.namespace}}),
        )
    )
    return {
        f"{verb} {resource}"
        for rule in found["status"]["resourceRules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        if not resource.startswith("selfsubject")
    }


def test_what_each_account_may(place: Place) -> None:
    """The whole list for each, and a list of what would be tempting, each asked one by one, here and elsewhere."""
    assert rules(place, "pyrite-controller") == set(VERBS)
    for account in ("pyrite-worker", "pyrite-vllm"):
        assert rules(place, account) == set()
    assert [what for what in VERBS if not may(place, "pyrite-controller", what)] == []
    assert [what for what in TEMPTING if may(place, "pyrite-controller", what)] == []
    assert [what for what in VERBS if may(place, "pyrite-controller", what, "default")] == []
    assert [what for what in VERBS if may(place, "pyrite-worker", what)] == []


def set_rules(place: Place, rules_: list[Object]) -> None:
    patch = json.dumps({"rules": [rule for rule in rules_ if rule["verbs"]]})  # one without a verb is refused
    kubectl("-n", place.namespace, "patch", "role", "pyrite-controller", "--type=merge", "-p", patch)


@contextmanager
def without(place: Place, what: str) -> Iterator[None]:
    """The controller's Role lacks a verb while the body runs."""
    verb, _, resource = what.partition(" ")
    whole = place.get("role", "pyrite-controller")["rules"]
    set_rules(
        place,
        [
            {**rule, "verbs": [one for one in rule["verbs"] if [one, *rule["resources"]] != [verb, resource]]}
            for rule in whole
        ],
    )
    try:
        assert not may(place, "pyrite-controller", what)
        yield
    finally:
        set_rules(place, whole)


def log(place: Place) -> str:
    text: str = kubectl("-n", place.namespace, "logs", "deploy/pyrite-controller", "--tail=-1")
    return text


def no_pods(place: Place) -> None:
    """A quota under which a Job's pods cannot be made."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    kubectl("-n", place.namespace, "apply", "-f", "-", stdin=json.dumps(quota))


def running(place: Place, run: str) -> None:
    place.apply(run, {"source": {"kind": "sample"}})
    place.wait(run, "Running", seconds=60)


@pytest.mark.parametrize("what", VERBS)
def test_each_verb_is_needed(place: Place, what: str) -> None:
    """Without it the run's status or the log names it; with it again, the run goes on."""
    verb, _, resource = what.partition(" ")
    run = what.translate(str.maketrans(" /", "--"))
    words = f'cannot {verb} resource "{resource}"'
    assert words not in log(place)
    if what == "delete jobs":
        running(place, run)
    if what == "list events":
        no_pods(place)
        running(place, run)
    with without(place, what):
        place.apply(run, {"source": {"kind": "sample"}, "cancel": what == "delete jobs"})
        if what == "patch statefulsets/scale":
            kubectl("-n", place.namespace, "delete", "trainingruns", "--all")
            kubectl("-n", place.namespace, "scale", "statefulset", "pyrite-vllm", "--replicas=1")
        until(f"the log says {words!r}", lambda: words in log(place), 90)
        if VERBS[what] == "status":
            assert words in place.status(run)["message"]
    if what == "patch statefulsets/scale":
        scaled = ["statefulset", "pyrite-vllm"]
        until("the server is at zero again", lambda: not place.get(*scaled)["spec"]["replicas"], 60)
        return
    if what == "list events":
        until("the quota is named", lambda: "exceeded quota" in place.status(run).get("message", ""), 60)
        kubectl("-n", place.namespace, "delete", "resourcequota", "none")
    if what != "delete jobs":
        place.wait(run, "Running", seconds=60)
        place.edit(run, cancel=True)
    place.wait(run, "Cancelled", seconds=90)
