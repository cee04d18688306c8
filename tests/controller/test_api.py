"""The requests of ``Cluster`` to a stub of the Kubernetes API, compared with the permissions in the chart."""

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from charts.test_rendering import permissions
from charts.tools import INSTALLATIONS, objects
from controller.harness import LABELS
from pyrite.controller.api import Cluster
from pyrite.controller.lease import expire
from pyrite.controller.resource import parse

PATH = re.compile(r"/apis?/(?:([a-z0-9.]+)/)?v1(?:alpha1)?/namespaces/ns/([a-z]+)(?:/[a-z]+)?(/[a-z]+)?")
VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}
CREATED = "2026-11-23T08:00:00Z"
RUN = {"name": "r", "uid": "u", "generation": 1, "resourceVersion": "1", "creationTimestamp": CREATED}


class Stub(ThreadingHTTPServer):
    """Records API group, resource and verb of each request, and the body of patches by resource."""

    def __init__(self) -> None:
        self.status = 200
        self.requests: set[tuple[str, str, str]] = set()
        self.patches: dict[str, object] = {}
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                match = PATH.fullmatch(path)
                assert match, self.path
                resource = match[2] + (match[3] or "")
                verb = "list" if self.command == "GET" and path.endswith(f"/{match[2]}") else VERBS[self.command]
                stub.requests.add((match[1] or "", resource, verb))
                if verb == "patch":
                    stub.patches[resource] = json.loads(body)
                self.send_response(stub.status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                found = {"items": [], "metadata": {"creationTimestamp": CREATED}, "spec": {"replicas": 1}}
                self.wfile.write(body if verb == "create" else json.dumps(found).encode())

            do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                del arguments

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub
        stub.shutdown()


@pytest.fixture
def cluster(stub: Stub) -> Cluster:
    host = f"http://127.0.0.1:{stub.server_port}"
    return Cluster("ns", client.ApiClient(client.Configuration(host=host)))


def test_a_job_that_is_gone_is_no_error(stub: Stub, cluster: Cluster) -> None:
    """Regression: one sync reported an error if a Job vanished before its deadline was set."""
    stub.status = 404
    cluster.delete_job("gone")
    cluster.expire_job("gone")
    stub.status = 500
    with pytest.raises(ApiException):
        cluster.expire_job("gone")


def allowed(role: str) -> set[tuple[str, str, str]]:
    rules = permissions(objects(*INSTALLATIONS["eks"]), role)
    return {(group, resource, verb) for group, resource, verbs, *_ in rules for verb in verbs.split()}


def test_controller_may_send_exactly_its_requests(stub: Stub, cluster: Cluster) -> None:
    cluster.runs()
    cluster.jobs(["r"])
    cluster.pods("r")
    cluster.failed_pods("job")
    cluster.server_pods("release")
    cluster.events("job")
    cluster.server("vllm")
    cluster.scale("vllm", 2)
    cluster.renew_lease("vllm", datetime(2026, 11, 23, 9, tzinfo=UTC))
    for kind in ("ConfigMap", "Job"):
        cluster.create({"kind": kind, "metadata": {"name": "a"}})
    cluster.delete_job("job")
    cluster.expire_job("job")
    run = parse({"metadata": RUN, "spec": LABELS})
    cluster.patch_status(run, {"phase": "Running"})
    cluster.record_event(run, "Normal", "Started", "text", CREATED)
    assert stub.requests == allowed("pyrite-controller")
    assert stub.patches == {
        "statefulsets/scale": {"spec": {"replicas": 2}},
        "leases": {"spec": {"renewTime": "2026-11-23T09:00:00.000000Z"}},
        "jobs": {"spec": {"activeDeadlineSeconds": 1}},
        "trainingruns/status": {"metadata": {"resourceVersion": "1"}, "status": {"phase": "Running"}},
    }


def test_lease_check_may_send_exactly_its_requests(stub: Stub, cluster: Cluster) -> None:
    """A lease that was never renewed expires after its creation."""
    expire(cluster, "vllm", timedelta(minutes=15), datetime.fromisoformat(CREATED) + timedelta(minutes=16))
    assert stub.requests == allowed("pyrite-vllm-lease")
    assert stub.patches == {"statefulsets/scale": {"spec": {"replicas": 0}}}
