"""A real Prometheus in the cluster with the chart's own PodMonitor and PrometheusRule.

There is no Prometheus Operator, so the test translates the two as the operator does. Debian builds Prometheus without
pod discovery, so a sidecar lists the pods and writes them as file targets, with the labels of Prometheus' documentation
(kubernetes_sd_config, role pod). The alerts run with a minute shortened to a second; tests/charts checks their real
durations.
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
from real.cluster.release import Object, Release, kubectl, wait_until
from real.cluster.vllm_server import RUN, host_volume, prepare_vllm, server_values
from real.prometheus import Prometheus
from real.vllm import REAL_VLLM

pytestmark = [pytest.mark.real, pytest.mark.slow]

VALUES: Object = {
    "server": server_values(
        requests={"cpu": "100m", "memory": "3Gi", "nvidia.com/gpu": None},
        limits={"cpu": "2", "memory": "6Gi", "nvidia.com/gpu": None},
    ),
    "networkPolicy": {"metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]},
    "metrics": {"podMonitor": {"enabled": True, "interval": "2s"}, "rules": {"enabled": True}},
    "cost": {"dollarsPerHour": 3600, "budgetDollars": 5},
    "extraObjects": host_volume("vllm", str(REAL_VLLM.VENV)),
}

#: Alerts that fire within a run of minutes. tests/real/test_watching.py has those of judging.
ALERTS = {
    *("PyriteServerNotReady", "PyriteCostOverBudget", "PyriteJudgingStalled", "PyriteControllerDown"),
    *("PyriteRunFailed", "PyriteControllerFailing"),
}


#: Replaces Prometheus' pod discovery: lists the pods every second, and writes a target per container port.
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
def requirements() -> None:
    prepare_vllm()
    prometheus.program()


def scrapes(monitor: Object) -> list[Object]:
    """The scrape configurations of a PodMonitor."""

    def pod_label(name: str) -> str:
        return "__meta_kubernetes_pod_label_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)

    def snake(word: str) -> str:
        return re.sub(r"([A-Z])", lambda found: "_" + found[1].lower(), word)

    selected = [
        {"source_labels": [pod_label(name)], "regex": value, "action": "keep"}
        for name, value in monitor["spec"]["selector"]["matchLabels"].items()
    ]
    return [
        {
            "job_name": endpoint["port"],
            "scrape_interval": endpoint["interval"],
            "file_sd_configs": [{"files": ["/targets/pods.json"], "refresh_interval": "1s"}],
            "relabel_configs": [
                {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Failed|Succeeded", "action": "drop"},
                *selected,
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


def accelerated(alerts: Object) -> Object:
    """Copies of ALERTS with minutes shortened to seconds, in addition to the chart's own."""
    chosen = [{**rule, "alert": f"Fast{rule['alert']}"} for rule in alerts["rules"] if rule["alert"] in ALERTS]
    assert len(chosen) == len(ALERTS)
    found: Object = prometheus.shortened({"name": "fast", "interval": "1s", "rules": chosen})
    return found


@pytest.fixture(scope="module")
def prometheus_server(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Prometheus:
    """Prometheus in a pod of the namespace. Its account may only list pods."""
    folder = tmp_path_factory.mktemp("prometheus")
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o755)
    shutil.copy(prometheus.program(), folder)
    rules = release.get("prometheusrule", "pyrite")["spec"]
    configuration = {
        "global": {"evaluation_interval": "2s"},
        "rule_files": ["/config/rules.yaml"],
        "scrape_configs": scrapes(release.get("podmonitor", "pyrite")),
    }
    rules["groups"].append(accelerated(rules["groups"][1]))
    text = json.dumps(host_volume("prometheus", str(folder))).replace("{{ .Release.Namespace }}", release.namespace)
    name: Object = {"metadata": {"name": "prometheus"}}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "prometheus"}
    account = {"kind": "ServiceAccount", "name": "prometheus", "namespace": release.namespace}
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
    rbac = "rbac.authorization.k8s.io/v1"
    files = {"prometheus.yaml": yaml.safe_dump(configuration), "rules.yaml": yaml.safe_dump(rules)}
    objects = [
        *json.loads(text),
        {"apiVersion": "v1", "kind": "ServiceAccount", **name},
        {"apiVersion": rbac, "kind": "Role", **name, "rules": [rule]},
        {"apiVersion": rbac, "kind": "RoleBinding", **name, "roleRef": role, "subjects": [account]},
        {"apiVersion": "v1", "kind": "ConfigMap", **name, "data": files},
        {"apiVersion": "v1", "kind": "Pod", **_pod()},
    ]
    for one in objects:
        kubectl("-n", release.namespace, "apply", "-f", "-", stdin=json.dumps(one))
    kubectl("-n", release.namespace, "wait", "pod/prometheus", "--for=condition=Ready", "--timeout=90s")
    proxy = f"/api/v1/namespaces/{release.namespace}/pods/prometheus:9090/proxy"
    found = Prometheus(lambda path: json.loads(kubectl("get", "--raw", proxy + quote(path, safe="/?&=%+"))))
    found.until("the controller is scraped", 'up{component="controller"} == 1', 60)
    return found


def _pod() -> Object:
    arguments = ["--config.file=/config/prometheus.yaml", "--storage.tsdb.path=/data", "--web.listen-address=:9090"]
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
        {"name": "prometheus", "command": ["/prometheus/prometheus", *arguments], "readinessProbe": probe, **container},
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
    """The vLLM server's processes are stopped during the body: its pod exists but does not respond."""
    found = subprocess.run(["pgrep", "-f", "/vllm/model|VLLM::"], capture_output=True, text=True, check=True).stdout
    processes = [int(line) for line in found.split()]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        wait_until("all processes are stopped", lambda: all(map(_is_stopped, processes)), 10)
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


@contextmanager
def forbidden(release: Release) -> Iterator[None]:
    """The controller has no permissions during the body."""
    binding = kubectl("-n", release.namespace, "get", "rolebinding", "pyrite-controller", "-o", "yaml")
    kubectl("-n", release.namespace, "delete", "rolebinding", "pyrite-controller")
    try:
        yield
    finally:
        kubectl(
            "-n", release.namespace, "create", "-f", "-", stdin=re.sub(r"\n  (resourceVersion|uid): .*", "", binding)
        )


def test_dashboards_have_data_and_alerts_fire(
    release: Release, prometheus_server: Prometheus, small_spec: Callable[..., Object]
) -> None:
    """Detects a label that differs between PodMonitor and rules, a renamed metric, or a closed port."""
    wait_until("no alert fires", lambda: not prometheus_server.now('ALERTS{alertstate="firing"}'), 60)
    start = time.time()
    # 160 pairs: a fast machine judges fewer before the test can stop the server.
    release.apply("watched", small_spec(**{**RUN, "retrieve": {"range_max": 20}}, resources={"judge_timeout": 5}))
    prometheus_server.until("the loading server is reported", firing("PyriteServerNotReady"), 300)
    prometheus_server.until(
        "pairs are judged", 'pyrite_judge_pairs_total{outcome="judged", run="watched", shard=~".+"} > 2', 300
    )
    assert not prometheus_server.now(firing("PyriteServerNotReady"))
    scraped = prometheus_server.scraped()
    with frozen():
        prometheus_server.until("the stalled judge is reported", firing("PyriteJudgingStalled"), 90)
    assert prometheus_server.now(firing("PyriteCostOverBudget"))
    with forbidden(release):
        prometheus_server.until("the failing syncs are reported", firing("PyriteControllerFailing"), 90)
    release.wait("watched", seconds=900)
    prometheus_server.until(
        "the end of the run is exported", 'pyrite_run_phase{run="watched", phase="Succeeded"} == 1', 60
    )
    wait_until("the cost alert ends", lambda: not prometheus_server.now(firing("PyriteCostOverBudget")), 60)
    scraped |= prometheus_server.scraped()
    assert prometheus.names() - scraped == set()
    empty = prometheus.empty_panels(prometheus_server, start, namespace=release.namespace, run="watched")
    assert empty == prometheus.GPU_PANELS

    assert not {"FastPyriteRunFailed", "FastPyriteControllerDown"} & prometheus_server.firing(start)
    release.apply("broken", small_spec(source={"kind": "jsonl", "path": "s3://pyrite/nowhere.jsonl"}))
    prometheus_server.until("the failed run is reported", firing("PyriteRunFailed"), 300)
    with faults.no_controller(release):
        prometheus_server.until("the missing controller is reported", firing("PyriteControllerDown"), 120)
    wait_until("the controller is back", lambda: not prometheus_server.now(firing("PyriteControllerDown")), 120)
    slow = {name for name in prometheus_server.firing(start) if not name.startswith("Fast")}
    assert slow <= {"PyriteCostOverBudget", "PyriteRunFailed"}, "an alert fires before its delay"
