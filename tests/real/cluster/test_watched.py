"""A real Prometheus in the cluster finds the pods by the chart's own PodMonitor, and goes by its own PrometheusRule.

No operator is there to translate the two for Prometheus; that is done here, as the operator does it. Debian builds
Prometheus without its discovery of pods, so a container beside it lists them at the API and hands them over with the
labels that Prometheus' documentation gives (kubernetes_sd_config, role pod); all that follows is Prometheus' own. The
alerts are asked in fast motion, a minute being a second: that they wait as long as they must is tests/charts' to say.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from real import prometheus
from real.cluster import faults
from real.cluster.place import Object, Place, kubectl, until
from real.cluster.serving import RUN, on_disk, ready, server
from real.prometheus import Prometheus
from real.vllm import REAL_VLLM

pytestmark = [pytest.mark.real, pytest.mark.slow]

VALUES: Object = {
    "server": server(
        requests={"cpu": "100m", "memory": "3Gi", "nvidia.com/gpu": None},
        limits={"cpu": "2", "memory": "6Gi", "nvidia.com/gpu": None},
    ),
    "networkPolicy": {"metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]},
    "metrics": {"podMonitor": {"enabled": True, "interval": "2s"}, "rules": {"enabled": True}},
    "cost": {"dollarsPerHour": 3600, "budgetDollars": 5},
    "extraObjects": on_disk("vllm", str(REAL_VLLM.VENV)),
}

#: Those that a run of minutes shows; judging that goes wrong is tests/real/test_watching.py's.
ALERTS = {
    *("PyriteServerNotReady", "PyriteCostOverBudget", "PyriteJudgingStalled", "PyriteControllerDown"),
    *("PyriteRunFailed", "PyriteControllerFailing"),
}


#: Stands in for Prometheus' own discovery: lists the pods every second, a target for each port of each container.
DISCOVERY = """
import json, os, re, ssl, time, urllib.request
here = "/var/run/secrets/kubernetes.io/serviceaccount/"
context = ssl.create_default_context(cafile=here + "ca.crt")
url = "https://kubernetes.default.svc/api/v1/namespaces/" + open(here + "namespace").read() + "/pods"
while True:
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + open(here + "token").read()})
    pods = json.load(urllib.request.urlopen(request, context=context, timeout=10))["items"]
    found = []
    for pod in (pod for pod in pods if pod["status"].get("podIP")):
        labels = {"__meta_kubernetes_namespace": pod["metadata"]["namespace"]}
        labels["__meta_kubernetes_pod_name"] = pod["metadata"]["name"]
        labels["__meta_kubernetes_pod_phase"] = pod["status"]["phase"]
        for name, value in pod["metadata"].get("labels", {}).items():
            labels["__meta_kubernetes_pod_label_" + re.sub("[^a-zA-Z0-9_]", "_", name)] = value
        for container in pod["spec"]["containers"]:
            for port in container.get("ports", []):
                name = {"__meta_kubernetes_pod_container_port_name": port.get("name", "")}
                address = "%s:%d" % (pod["status"]["podIP"], port["containerPort"])
                found.append({"targets": [address], "labels": {**labels, **name}})
    with open("/targets/new", "w") as file:
        json.dump(found, file)
    os.replace("/targets/new", "/targets/pods.json")
    time.sleep(1)
"""


@pytest.fixture(scope="module", autouse=True)
def parts() -> None:
    ready()
    prometheus.program()


def scrapes(monitor: Object) -> list[Object]:
    """A PodMonitor as Prometheus reads it."""

    def plain(name: str) -> str:
        return "__meta_kubernetes_pod_label_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)

    def snake(word: str) -> str:
        return re.sub(r"([A-Z])", lambda found: "_" + found[1].lower(), word)

    chosen = [
        {"source_labels": [plain(name)], "regex": value, "action": "keep"}
        for name, value in monitor["spec"]["selector"]["matchLabels"].items()
    ]
    return [
        {
            "job_name": endpoint["port"],
            "scrape_interval": endpoint["interval"],
            "file_sd_configs": [{"files": ["/targets/pods.json"], "refresh_interval": "1s"}],
            "relabel_configs": [
                {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Failed|Succeeded", "action": "drop"},
                *chosen,
                {
                    "source_labels": ["__meta_kubernetes_pod_container_port_name"],
                    "regex": endpoint["port"],
                    "action": "keep",
                },
                {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
                {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
                *[{snake(name): value for name, value in one.items()} for one in endpoint["relabelings"]],
            ],
        }
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
    ]


def fast(alerts: Object) -> Object:
    """The alerts, those that rest on no recorded series, in fast motion beside the chart's own."""
    chosen = [{**rule, "alert": f"Fast{rule['alert']}"} for rule in alerts["rules"] if rule["alert"] in ALERTS]
    assert len(chosen) == len(ALERTS)
    found: Object = prometheus.shortened({"name": "fast", "interval": "1s", "rules": chosen})
    return found


@pytest.fixture(scope="module")
def seen(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Prometheus:
    """Prometheus in a pod of the namespace, which may list pods and nothing else."""
    folder = tmp_path_factory.mktemp("prometheus")
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o755)
    shutil.copy(prometheus.program(), folder)
    rules = place.get("prometheusrule", "pyrite")["spec"]
    described = {
        "global": {"evaluation_interval": "2s"},
        "rule_files": ["/config/rules.yaml"],
        "scrape_configs": scrapes(place.get("podmonitor", "pyrite")),
    }
    rules["groups"].append(fast(rules["groups"][1]))
    text = json.dumps(on_disk("prometheus", str(folder))).replace("{{ .Release.Namespace }}", place.namespace)
    name: Object = {"metadata": {"name": "prometheus"}}
    who = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "prometheus"}
    account = {"kind": "ServiceAccount", "name": "prometheus", "namespace": place.namespace}
    may = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
    rbac = "rbac.authorization.k8s.io/v1"
    configuration = {"prometheus.yaml": yaml.safe_dump(described), "rules.yaml": yaml.safe_dump(rules)}
    objects = [
        *json.loads(text),
        {"apiVersion": "v1", "kind": "ServiceAccount", **name},
        {"apiVersion": rbac, "kind": "Role", **name, "rules": [may]},
        {"apiVersion": rbac, "kind": "RoleBinding", **name, "roleRef": who, "subjects": [account]},
        {"apiVersion": "v1", "kind": "ConfigMap", **name, "data": configuration},
        {"apiVersion": "v1", "kind": "Pod", **_pod()},
    ]
    for one in objects:
        kubectl("-n", place.namespace, "apply", "-f", "-", stdin=json.dumps(one))
    kubectl("-n", place.namespace, "wait", "pod/prometheus", "--for=condition=Ready", "--timeout=90s")
    proxy = f"/api/v1/namespaces/{place.namespace}/pods/prometheus:9090/proxy"
    found = Prometheus(lambda path: json.loads(kubectl("get", "--raw", proxy + quote(path, safe="/?&=%+"))))
    found.until("the controller is scraped", 'up{component="controller"} == 1', 60)
    return found


def _pod() -> Object:
    words = ["--config.file=/config/prometheus.yaml", "--storage.tsdb.path=/data", "--web.listen-address=:9090"]
    container = {
        "image": "localhost/pyrite-worker:0.1.0",
        "volumeMounts": [{"name": n, "mountPath": f"/{n}"} for n in ("config", "data", "prometheus", "targets")],
        "resources": {"requests": {"cpu": "10m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    security = {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}}
    volumes = [
        {"name": "config", "configMap": {"name": "prometheus"}},
        {"name": "data", "emptyDir": {}},
        {"name": "targets", "emptyDir": {}},
        {"name": "prometheus", "persistentVolumeClaim": {"claimName": "prometheus", "readOnly": True}},
    ]
    probe = {"httpGet": {"path": "/-/ready", "port": 9090}, "periodSeconds": 2}
    containers = [
        {"name": "prometheus", "command": ["/prometheus/prometheus", *words], "readinessProbe": probe, **container},
        {"name": "discovery", "command": ["python", "-c", DISCOVERY], **container},
    ]
    spec: dict[str, Any] = {"serviceAccountName": "prometheus", "securityContext": security, "volumes": volumes}
    return {
        "metadata": {"name": "prometheus", "labels": {"app": "prometheus"}},
        "spec": {**spec, "containers": containers},
    }


def firing(alert: str) -> str:
    return f'ALERTS{{alertname="Fast{alert}", alertstate="firing"}}'


def _is_stopped(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] == "T"


@contextmanager
def frozen() -> Iterator[None]:
    """The processes of the server's pod do not move: it is there, and answers nobody."""
    found = subprocess.run(["pgrep", "-f", "/vllm/model|VLLM::"], capture_output=True, text=True, check=True).stdout
    processes = [int(line) for line in found.split()]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        until("nothing of it moves", lambda: all(map(_is_stopped, processes)), 10)
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


@contextmanager
def forbidden(place: Place) -> Iterator[None]:
    """The controller may do nothing any more."""
    binding = kubectl("-n", place.namespace, "get", "rolebinding", "pyrite-controller", "-o", "yaml")
    kubectl("-n", place.namespace, "delete", "rolebinding", "pyrite-controller")
    try:
        yield
    finally:
        kubectl("-n", place.namespace, "create", "-f", "-", stdin=re.sub(r"\n  (resourceVersion|uid): .*", "", binding))


def test_dashboards_and_rules_find_what_they_ask_for_and_alerts_fire(
    place: Place, seen: Prometheus, small: Callable[..., Object]
) -> None:
    """The bugs: a label that the PodMonitor gives and a rule goes by differ; a metric was renamed; a port is shut."""
    until("all is well", lambda: not seen.now('ALERTS{alertstate="firing"}'), 60)
    start = time.time()
    # 160 pairs: on a fast machine fewer are judged before anything can be done to the server.
    place.apply("watched", small(**{**RUN, "retrieve": {"range_max": 20}}, resources={"judge_timeout": 5}))
    seen.until("a server that loads is told", firing("PyriteServerNotReady"), 300)
    seen.until("pairs are judged", 'pyrite_judge_pairs_total{outcome="judged", run="watched", shard=~".+"} > 2', 300)
    assert not seen.now(firing("PyriteServerNotReady"))
    scraped = seen.scraped()
    with frozen():
        seen.until("a judge that hangs is told", firing("PyriteJudgingStalled"), 90)
    assert seen.now(firing("PyriteCostOverBudget"))
    with forbidden(place):
        seen.until("turns that all fail are told", firing("PyriteControllerFailing"), 90)
    place.wait("watched", seconds=900)
    seen.until("its end is shown", 'pyrite_run_phase{run="watched", phase="Succeeded"} == 1', 60)
    until("what it cost is no alarm any more", lambda: not seen.now(firing("PyriteCostOverBudget")), 60)
    scraped |= seen.scraped()
    assert prometheus.names() - scraped == set()
    assert prometheus.empty_panels(seen, start, namespace=place.namespace, run="watched") == set()

    assert not {"FastPyriteRunFailed", "FastPyriteControllerDown"} & seen.firing(start)
    place.apply("broken", small(source={"kind": "jsonl", "path": "s3://pyrite/nowhere.jsonl"}))
    seen.until("a run that failed is told", firing("PyriteRunFailed"), 300)
    with faults.no_controller(place):
        seen.until("a controller that is gone is told", firing("PyriteControllerDown"), 120)
    until("it is back", lambda: not seen.now(firing("PyriteControllerDown")), 120)
    slow = {name for name in seen.firing(start) if not name.startswith("Fast")}
    assert slow <= {"PyriteCostOverBudget", "PyriteRunFailed"}, "these do not wait"
