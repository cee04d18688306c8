"""The chart on a real cluster: what KUBECONFIG names. Needs helm and kubectl, and rights to make namespaces."""

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

#: A server that only has to exist: its pods may wait for an image or fail, their number is what counts.
SERVER = (
    "--set=store.url=s3://bucket/prefix,server.enabled=true,server.replicas=2",
    r"--set=server.resources.requests.nvidia\.com/gpu=null,server.resources.limits.nvidia\.com/gpu=null",
    "--set=server.resources.requests.cpu=10m,server.resources.requests.memory=16Mi",
)
Kubectl = Callable[..., Any]


@pytest.fixture
def kubectl() -> Iterator[Kubectl]:
    """kubectl in a namespace of its own that enforces restricted Pod Security; JSON comes back as objects."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("no cluster: KUBECONFIG is not set")
    namespace = f"chart-{uuid.uuid4().hex[:8]}"

    def call(*words: str, given: str | None = None, fails: bool = False) -> Any:
        done = subprocess.run(
            [program("kubectl"), "--namespace", namespace, "--request-timeout=30s", *words],
            input=given,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        text = done.stderr if fails else done.stdout
        return json.loads(text) if "--output=json" in words else text

    call("create", "namespace", namespace)
    try:
        call("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        yield call
    finally:
        call("delete", "namespace", namespace, "--wait=false")


def namespace_of(kubectl: Kubectl) -> str:
    return str(kubectl("get", "serviceaccounts", "--output=jsonpath={.items[0].metadata.namespace}"))


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.5)


@pytest.mark.parametrize("values", INSTALLATIONS.values(), ids=INSTALLATIONS)
def test_the_api_server_accepts_every_rendering(values: tuple[str, ...], kubectl: Kubectl) -> None:
    """Strictly: an unknown field is an error, not something that is dropped in silence."""
    namespace = namespace_of(kubectl)
    found = [one for one in yaml.safe_load_all(rendered(*values)) if one]
    there = kubectl("api-resources", "--api-group=monitoring.coreos.com", "--no-headers")
    found = [
        one for one in found if one["kind"] not in ("PodMonitor", "PrometheusRule") or one["kind"] in there.split()
    ]
    for one in found:
        one["metadata"].pop("namespace", None)
        for subject in one.get("subjects", ()):
            subject["namespace"] = namespace
    # What a pod needs to be let in, which a dry run does not leave behind.
    accounts = [one for one in found if one["kind"] == "ServiceAccount"]
    about = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 0}
    classes = sorted({pod["priorityClassName"] for _, pod in pod_specs(found) if "priorityClassName" in pod})
    needed = yaml.safe_dump_all([*accounts, *({**about, "metadata": {"name": name}} for name in classes)])
    kubectl("apply", "--filename=-", given=needed)
    try:
        told = kubectl(
            "apply", "--dry-run=server", "--validate=strict", "--filename=-", given=yaml.safe_dump_all(found)
        )
    finally:
        if classes:
            kubectl("delete", "priorityclass", *classes)
    assert told.count("(server dry run)") == len(found)


@pytest.mark.parametrize("job", sorted((CHART / "jobs").glob("*.yaml")), ids=lambda job: job.stem)
def test_the_api_server_accepts_each_job_as_it_stands(job: Path, kubectl: Kubectl) -> None:
    """As its first lines promise."""
    kubectl("apply", "--dry-run=server", "--validate=strict", f"--filename={job}")


def bring_the_kind_up_to_date(kubectl: Kubectl) -> None:
    """By README.md's command: what it sets is helm's, so that a helm install after it meets no conflict."""
    words = ("--server-side", "--force-conflicts", "--field-manager=helm")
    assert " ".join(("kubectl apply", *words, "-f charts/pyrite/crds")) in (CHART / "README.md").read_text()
    kubectl("apply", *words, f"--filename={CHART / 'crds'}")


def test_install_upgrade_uninstall(kubectl: Kubectl) -> None:
    """An upgrade while the server is up neither stops nor restarts it, and changes it for the next time.

    The controller's part is played through the same call: a patch of the StatefulSet's scale.
    """
    namespace = namespace_of(kubectl)

    def release(*words: str) -> subprocess.CompletedProcess[str]:
        done = helm(words[0], "pyrite", *words[1:], f"--namespace={namespace}")
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

    bring_the_kind_up_to_date(kubectl)
    told = release("install", str(CHART), *SERVER).stdout
    assert server()["replicas"] == 0
    assert [line for line in told.splitlines() if len(line) > 80] == []
    assert "kubectl get trainingruns" in told

    scale(2)
    before = pods()
    told = release("upgrade", str(CHART), *SERVER, "--set=server.model.maxLength=999,judge.parallelism=9").stdout
    assert "kubectl apply --server-side --force-conflicts --field-manager=helm" in told
    assert server()["replicas"] == 2
    assert "--max-model-len=999" in server()["template"]["spec"]["containers"][0]["args"]
    assert "parallelism: 9" in kubectl("get", "configmap", "pyrite-settings", "--output=jsonpath={.data}")
    time.sleep(3)  # long enough for a StatefulSet that wants to replace a pod to have begun
    assert pods() == before

    scale(0)
    release("upgrade", str(CHART), "--reset-then-reuse-values", "--set=server.replicas=1")
    assert server()["replicas"] == 0, "it was scaled to zero, and an upgrade starts nothing"
    scale(1)
    assert "--max-model-len=999" in kubectl(
        "get", "pod", "pyrite-vllm-0", "--output=jsonpath={.spec.containers[0].args}"
    )

    run = {"apiVersion": "pyrite.dev/v1alpha1", "kind": "TrainingRun", "metadata": {"name": "kept"}}
    kubectl("create", "--filename=-", given=json.dumps({**run, "spec": {"source": {"kind": "sample"}}}))
    release("uninstall")
    assert "kept" in kubectl("get", "trainingruns")
    kinds = "all,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets"
    wait_for(lambda: "pyrite" not in kubectl("get", kinds, "--output=name"), 90)
    release("install", str(CHART), *SERVER)
    assert "kept" in kubectl("get", "trainingruns")


def test_the_notes_say_what_is_missing(kubectl: Kubectl) -> None:
    namespace = namespace_of(kubectl)

    def notes(*words: str) -> str:
        done = helm("install", "pyrite", str(CHART), "--dry-run=server", f"--namespace={namespace}", *words)
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
    said = notes(secret, "--set=server.enabled=true,server.replicas=100")
    wanted = (
        "Pods request 100 GPUs at once, but the nodes offer" if offered.strip("0 ") else "No node offers nvidia.com/gpu"
    )
    assert wanted in said


def test_someone_with_the_namespace_alone_can_install(kubectl: Kubectl) -> None:
    """helm stops where its notes look at what the installer may not see."""
    namespace = namespace_of(kubectl)
    kubectl("create", "serviceaccount", "someone")
    kubectl("create", "rolebinding", "someone", "--clusterrole=admin", f"--serviceaccount={namespace}:someone")
    custom = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "runs"},
        "rules": [{"apiGroups": ["pyrite.dev"], "resources": ["*"], "verbs": ["*"]}],
    }
    kubectl("create", "--filename=-", given=json.dumps(custom))
    kubectl("create", "rolebinding", "runs", "--role=runs", f"--serviceaccount={namespace}:someone")
    done = helm(
        "install",
        "pyrite",
        str(CHART),
        *("--set=store.url=s3://bucket/prefix,server.enabled=true,notes.checkNodes=false", "--skip-crds"),
        f"--namespace={namespace}",
        f"--kube-as-user=system:serviceaccount:{namespace}:someone",
    )
    assert done.returncode == 0, done.stderr
    assert "Next steps, from a checkout" in done.stdout
