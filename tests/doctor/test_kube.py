"""`pyrite doctor --on cluster` against a stub of the Kubernetes API, which holds what the chart installs."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

Pyrite = Callable[..., Any]
EKS = "arn:aws:eks:us-east-1:123456789012:cluster/pyrite"
SETTINGS = {
    "instance": "pyrite",
    "worker": {
        "image": "registry/pyrite-worker:0.1.0",
        "env": [{"name": "PYRITE_STORE", "value": "s3://bucket/pyrite"}],
        "envFrom": [{"secretRef": {"name": "store"}}],
        "pod": {"serviceAccountName": "pyrite-worker"},
        "stages": {
            "finetune": {"image": "registry/pyrite-worker:0.1.0-cuda", "resources": {"limits": {"nvidia.com/gpu": 1}}},
            "judge": {"pod": {"nodeSelector": {"kubernetes.io/arch": "amd64"}}},
        },
    },
    "judge": {"urls": ["http://judge:8000"], "keySecret": "judge-key"},
    "server": None,
}


class Stub:
    """Lists of objects by the last part of their path. The Job ends at once, with ``succeeded`` and ``log``."""

    def __init__(self) -> None:
        pod = {"serviceAccountName": "pyrite-controller", "containers": [{"image": "registry/pyrite-controller:0.1.0"}]}
        self.lists: dict[str, list[dict[str, Any]]] = {
            "configmaps": [{"metadata": {"name": "s"}, "data": {"settings.yaml": yaml.safe_dump(SETTINGS)}}],
            "deployments": [{"spec": {"replicas": 1, "template": {"spec": pod}}, "status": {"readyReplicas": 1}}],
            "statefulsets": [],
            "nodes": [{"metadata": {"name": "gpu-1"}, "status": {"allocatable": {"nvidia.com/gpu": "4"}}}],
            "daemonsets": [],
            "storageclasses": [],
            "pods": [{"metadata": {"name": "doctor"}}],
        }
        self.job_status: dict[str, int] = {"succeeded": 1}
        self.log = ""
        self.job: dict[str, Any] = {}
        self.deleted: list[str] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path.endswith("/log"):
                    return self.reply(stub.log.encode())
                if "/jobs/" in path:
                    return self.reply({**stub.job, "status": stub.job_status})
                return self.reply({"items": stub.lists[path.rpartition("/")[2]]})

            def do_POST(self) -> None:
                stub.job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.reply(stub.job)

            def do_DELETE(self) -> None:
                stub.deleted.append(self.path.rpartition("/")[2].partition("?")[0])
                self.reply({})

            def reply(self, content: Any) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

            def log_message(self, *arguments: Any) -> None:
                del arguments

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    stub.server.shutdown()
    stub.server.server_close()


def doctor(pyrite: Pyrite, folder: Path, stub: Stub, cluster: str = "kind") -> Any:
    path = folder / "kubeconfig"
    entry = {"name": cluster, "cluster": {"server": f"http://127.0.0.1:{stub.server.server_port}"}}
    context = {"name": "x", "context": {"cluster": cluster, "user": "u", "namespace": "team"}}
    users = [{"name": "u", "user": {}}]
    path.write_text(json.dumps({"clusters": [entry], "contexts": [context], "users": users, "current-context": "x"}))
    no_credentials = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"), "")
    files = {"AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none", "AWS_EC2_METADATA_DISABLED": "true"}
    return pyrite("doctor", "--on", "cluster", KUBECONFIG=str(path), **no_credentials, **files)


def test_healthy_cluster_exits_with_0(pyrite: Pyrite, tmp_path: Path, stub: Stub) -> None:
    done = doctor(pyrite, tmp_path, stub)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kind is not an EKS cluster" in done.stdout
    assert "GPUs: 4; nodes with GPUs: 1" in done.stdout
    assert "the store is readable and writable with the pod's own role" in done.stdout
    assert "FAIL" not in done.stdout


def test_job_has_the_access_of_a_judge_pod(pyrite: Pyrite, tmp_path: Path, stub: Stub) -> None:
    doctor(pyrite, tmp_path, stub)
    template = stub.job["spec"]["template"]
    pod, (worker,) = template["spec"], template["spec"]["containers"]
    assert template["metadata"]["labels"]["pyrite.dev/stage"] == "judge", "network policies select it"
    assert (pod["serviceAccountName"], pod["nodeSelector"]) == ("pyrite-worker", {"kubernetes.io/arch": "amd64"})
    assert worker["image"] == "registry/pyrite-worker:0.1.0"
    assert {"name": "PYRITE_STORE", "value": "s3://bucket/pyrite"} in worker["env"]
    assert worker["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert worker["args"] == ["--judge-url", "http://judge:8000"]
    assert stub.deleted == [stub.job["metadata"]["name"]]


def test_failures_in_the_pod_are_shown(pyrite: Pyrite, tmp_path: Path, stub: Stub) -> None:
    stub.job_status = {"failed": 1}
    stub.log = "ok   Python             3.11\nFAIL store s3://bucket: access denied\n     Fix it.\n"
    done = doctor(pyrite, tmp_path, stub)
    assert done.returncode == 2
    assert "FAIL from a worker pod  store s3://bucket: access denied" in done.stdout
    assert "a Pod Identity association or IRSA role (EKS)" in " ".join(done.stdout.split())
    assert stub.deleted


def test_image_that_cannot_be_pulled_does_not_wait(pyrite: Pyrite, tmp_path: Path, stub: Stub) -> None:
    stub.job_status = {}
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "registry/pyrite-worker:0.1.0"'}
    stub.lists["pods"] = [
        {"metadata": {"name": "d"}, "status": {"containerStatuses": [{"state": {"waiting": waiting}}]}}
    ]
    done = doctor(pyrite, tmp_path, stub)
    assert done.returncode == 2
    assert "Back-off pulling image" in done.stdout


def test_each_problem_says_what_to_do(pyrite: Pyrite, tmp_path: Path, stub: Stub) -> None:
    server = {
        "metadata": {"name": "pyrite-vllm"},
        "spec": {
            "volumeClaimTemplates": [{"spec": {"storageClassName": "gp3"}}],
            "template": {"spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": 1}}}]}},
        },
    }
    settings = SETTINGS | {"server": {"statefulSet": "pyrite-vllm", "replicas": 4}}
    stub.lists |= {"statefulsets": [server], "nodes": [], "storageclasses": [{"metadata": {"name": "gp2"}}]}
    stub.lists["configmaps"][0]["data"]["settings.yaml"] = yaml.safe_dump(settings)
    stub.lists["deployments"][0]["status"] = {}
    done = doctor(pyrite, tmp_path, stub)
    assert done.returncode == 2
    for text in (
        "the controller is not ready",
        "no node offers nvidia.com/gpu, and there is no plugin",
        "gp3 does not exist; the cluster has gp2",
    ):
        assert text in done.stdout
    assert stub.job["spec"]["template"]["spec"]["containers"][0]["args"] == [], "the chart's server is scaled to zero"


def test_without_a_release_it_names_the_namespace(pyrite: Pyrite, tmp_path: Path, stub: Stub) -> None:
    stub.lists["deployments"] = []
    done = doctor(pyrite, tmp_path, stub)
    assert done.returncode == 2
    assert "Pyrite is not installed in namespace team" in done.stdout
    assert not stub.job


def test_missing_aws_credentials_are_reported(pyrite: Pyrite, tmp_path: Path, stub: Stub) -> None:
    """The other checks of AWS are skipped, those of Kubernetes are not."""
    done = doctor(pyrite, tmp_path, stub, EKS)
    assert done.returncode == 2
    assert "aws sso login" in done.stdout
    assert "GPU quota" not in done.stdout
    assert "the controller is ready" in done.stdout


def test_unreachable_cluster_exits_without_a_traceback(pyrite: Pyrite, tmp_path: Path, stub: Stub) -> None:
    stub.server.shutdown()
    stub.server.server_close()
    done = doctor(pyrite, tmp_path, stub)
    assert done.returncode == 1
    assert "the Kubernetes API of kind: no response" in done.stderr
    assert "Traceback" not in done.stderr
