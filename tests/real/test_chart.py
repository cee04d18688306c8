"""The chart on the cluster in KUBECONFIG. Needs helm, kubectl and permission to create namespaces."""

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.tools import CHART, INSTALLATIONS, helm, pod_specs, program, rendered

pytestmark = pytest.mark.real

#: Only the number of server pods matters; they may wait for an image or fail.
SERVER = (
    "--set=store.url=s3://bucket/prefix,server.enabled=true,server.replicas=2",
    r"--set=server.resources.requests.nvidia\.com/gpu=null,server.resources.limits.nvidia\.com/gpu=null",
    "--set=server.resources.requests.cpu=10m,server.resources.requests.memory=16Mi",
)
Kubectl = Callable[..., Any]


@pytest.fixture
def kubectl() -> Iterator[Kubectl]:
    """kubectl in a new namespace that enforces restricted Pod Security; parses JSON output."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("no cluster: KUBECONFIG is not set")
    namespace = f"chart-{uuid.uuid4().hex[:8]}"

    def call(*arguments: str, stdin: str | None = None, fails: bool = False) -> Any:
        done = subprocess.run(
            [program("kubectl"), "--namespace", namespace, "--request-timeout=30s", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        text = done.stderr if fails else done.stdout
        return json.loads(text) if "--output=json" in arguments else text

    call("create", "namespace", namespace)
    try:
        call("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        yield call
    finally:
        call("delete", "namespace", namespace, "--wait=false")


def namespace_of(kubectl: Kubectl) -> str:
    return str(kubectl("get", "serviceaccounts", "--output=jsonpath={.items[0].metadata.namespace}"))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met within {seconds:.0f} s"
        time.sleep(0.5)


@pytest.mark.parametrize("values", INSTALLATIONS.values(), ids=INSTALLATIONS)
def test_the_api_server_accepts_every_rendering(values: tuple[str, ...], kubectl: Kubectl) -> None:
    """Strict validation: an unknown field is an error instead of being dropped silently."""
    namespace = namespace_of(kubectl)
    resources = [one for one in yaml.safe_load_all(rendered(*values)) if one]
    crds = kubectl("api-resources", "--api-group=monitoring.coreos.com", "--no-headers")
    resources = [
        one for one in resources if one["kind"] not in ("PodMonitor", "PrometheusRule") or one["kind"] in crds.split()
    ]
    for one in resources:
        one["metadata"].pop("namespace", None)
        for subject in one.get("subjects", ()):
            subject["namespace"] = namespace
    # Pods need these objects for admission, and a dry run does not create them.
    accounts = [one for one in resources if one["kind"] == "ServiceAccount"]
    priority_class = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 0}
    classes = sorted({pod["priorityClassName"] for _, pod in pod_specs(resources) if "priorityClassName" in pod})
    needed = yaml.safe_dump_all([*accounts, *({**priority_class, "metadata": {"name": name}} for name in classes)])
    kubectl("apply", "--filename=-", stdin=needed)
    try:
        output = kubectl(
            "apply", "--dry-run=server", "--validate=strict", "--filename=-", stdin=yaml.safe_dump_all(resources)
        )
    finally:
        if classes:
            kubectl("delete", "priorityclass", *classes)
    assert output.count("(server dry run)") == len(resources)


@pytest.mark.parametrize("job", sorted((CHART / "jobs").glob("*.yaml")), ids=lambda job: job.stem)
def test_the_api_server_accepts_each_unmodified_job(job: Path, kubectl: Kubectl) -> None:
    """The first lines of each file claim that it can be applied unmodified."""
    kubectl("apply", "--dry-run=server", "--validate=strict", f"--filename={job}")


def upgrade_crds(kubectl: Kubectl) -> None:
    """Apply the CRDs with README.md's command. Its field manager is helm, so a later helm install has no conflict."""
    arguments = ("--server-side", "--force-conflicts", "--field-manager=helm")
    assert " ".join(("kubectl apply", *arguments, "-f charts/pyrite/crds")) in (CHART / "README.md").read_text()
    kubectl("apply", *arguments, f"--filename={CHART / 'crds'}")


def test_upgrades_restart_no_server_and_runs_survive_uninstall(kubectl: Kubectl) -> None:
    """An upgrade neither stops nor restarts a running server; its changes apply at the next scale-up.

    The test scales the StatefulSet itself, because the controller's image may not be on the cluster.
    """
    namespace = namespace_of(kubectl)

    def release(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = helm(arguments[0], "pyrite", *arguments[1:], f"--namespace={namespace}")
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def server() -> Any:
        return kubectl("get", "statefulset", "pyrite-vllm", "--output=json")["spec"]

    def pods() -> dict[str, str]:
        items = kubectl("get", "pods", "--selector=app.kubernetes.io/component=vllm", "--output=json")["items"]
        return {one["metadata"]["name"]: one["metadata"]["uid"] for one in items}

    def scale(replicas: int) -> None:
        kubectl("scale", "statefulset", "pyrite-vllm", f"--replicas={replicas}")
        wait_for(lambda: len(pods()) == replicas)

    upgrade_crds(kubectl)
    notes = release("install", str(CHART), *SERVER).stdout
    assert server()["replicas"] == 0
    assert [line for line in notes.splitlines() if len(line) > 80] == []
    assert "kubectl get trainingruns" in notes

    scale(2)
    before = pods()
    notes = release("upgrade", str(CHART), *SERVER, "--set=server.model.maxLength=999,judge.parallelism=9").stdout
    assert "kubectl apply --server-side --force-conflicts --field-manager=helm" in notes
    assert server()["replicas"] == 2
    assert "--max-model-len=999" in server()["template"]["spec"]["containers"][0]["args"]
    assert "parallelism: 9" in kubectl("get", "configmap", "pyrite-settings", "--output=jsonpath={.data}")
    time.sleep(3)  # time for the StatefulSet to replace a pod, if it would
    assert pods() == before

    scale(0)
    release("upgrade", str(CHART), "--reset-then-reuse-values", "--set=server.replicas=1")
    assert server()["replicas"] == 0, "an upgrade must not start servers"
    scale(1)
    assert "--max-model-len=999" in kubectl(
        "get", "pod", "pyrite-vllm-0", "--output=jsonpath={.spec.containers[0].args}"
    )

    run = {"apiVersion": "pyrite.dev/v1alpha1", "kind": "TrainingRun", "metadata": {"name": "existing"}}
    kubectl("create", "--filename=-", stdin=json.dumps({**run, "spec": {"source": {"kind": "sample"}}}))
    release("uninstall")
    assert "existing" in kubectl("get", "trainingruns")
    kinds = "all,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets,leases"
    wait_for(lambda: "pyrite" not in kubectl("get", kinds, "--output=name"), 90)
    release("install", str(CHART), *SERVER)
    assert "existing" in kubectl("get", "trainingruns")


def test_the_notes_list_missing_settings(kubectl: Kubectl) -> None:
    namespace = namespace_of(kubectl)

    def notes(*arguments: str) -> str:
        done = helm("install", "pyrite", str(CHART), "--dry-run=server", f"--namespace={namespace}", *arguments)
        assert done.returncode == 0, done.stderr
        return " ".join(done.stdout.partition("\nNOTES:\n")[2].split())

    assert "store.url is not set" in notes()
    assert "No credentials for the store" in notes("--set=store.url=s3://bucket/prefix")
    secret = "--set=store.url=s3://bucket/prefix,store.existingSecret=s3"
    assert "this namespace has no Secret s3 with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in notes(secret)
    kubectl("create", "secret", "generic", "s3", "--from-literal=AWS_ACCESS_KEY_ID=a")
    assert "this namespace has no Secret s3 with AWS_SECRET_ACCESS_KEY." in notes(secret)
    kubectl("delete", "secret", "s3")
    both = ("--from-literal=AWS_ACCESS_KEY_ID=a", "--from-literal=AWS_SECRET_ACCESS_KEY=b")
    kubectl("create", "secret", "generic", "s3", *both)
    assert "Missing" not in notes(secret)
    gpu = "--set=server.enabled=true,server.nodeSelector.no-such-label=here"
    assert 'No GPU node: no node matches server.nodeSelector {"no-such-label":"here"}' in notes(secret, gpu)
    offered = kubectl("get", "nodes", r"--output=jsonpath={.items[*].status.allocatable.nvidia\.com/gpu}")
    output = notes(secret, "--set=server.enabled=true,server.replicas=100")
    expected = (
        "Pods request 100 GPUs at once, but the nodes offer" if offered.strip("0 ") else "No node offers nvidia.com/gpu"
    )
    assert expected in output


def test_a_namespace_admin_can_install(kubectl: Kubectl) -> None:
    """helm fails if its notes look up objects that the user may not list."""
    namespace = namespace_of(kubectl)
    kubectl("create", "serviceaccount", "admin-user")
    kubectl("create", "rolebinding", "admin-user", "--clusterrole=admin", f"--serviceaccount={namespace}:admin-user")
    custom = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "runs"},
        "rules": [{"apiGroups": ["pyrite.dev"], "resources": ["*"], "verbs": ["*"]}],
    }
    kubectl("create", "--filename=-", stdin=json.dumps(custom))
    kubectl("create", "rolebinding", "runs", "--role=runs", f"--serviceaccount={namespace}:admin-user")
    done = helm(
        "install",
        "pyrite",
        str(CHART),
        *("--set=store.url=s3://bucket/prefix,server.enabled=true,notes.checkNodes=false", "--skip-crds"),
        f"--namespace={namespace}",
        f"--kube-as-user=system:serviceaccount:{namespace}:admin-user",
    )
    assert done.returncode == 0, done.stderr
    assert "Next steps, from a checkout" in done.stdout
