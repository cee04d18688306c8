"""A release of the chart in a namespace of a real cluster, with a store on a real S3 server."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import boto3

from charts.tools import CHART, program
from pyrite.plan import STAGES

ROOT = Path(__file__).parents[3]
CONTROLLER = "app.kubernetes.io/component=controller"
_SMALL: "Object" = {
    "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "4Gi"}}
}
T = TypeVar("T")
Object = dict[str, Any]


def kubectl(*arguments: str, stdin: str | None = None, check: bool = True, seconds: float = 120) -> str:
    """The output of kubectl. If it fails and ``check`` is not set, the output includes its errors."""
    done = subprocess.run(
        [program("kubectl"), *arguments], input=stdin, capture_output=True, text=True, timeout=seconds, check=False
    )
    if done.returncode and check:
        raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}")
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr


def wait_until(condition: str, poll: Callable[[], T | None], seconds: float = 120, every: float = 0.5) -> T:
    """The first result of ``poll`` that is true; ``condition`` describes it in the error."""
    deadline = time.monotonic() + seconds
    while True:
        found = poll()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{condition}: not within {seconds:.0f} s")
        time.sleep(every)


def is_running(pod: Object) -> bool:
    return pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]


class Release:
    """A release and its namespace. ``store``: environment variables for clients of the S3 server.

    ``files``: the chart's values files that come before ``values``.
    """

    def __init__(self, namespace: str, store: dict[str, str], values: Object, files: Sequence[Path] = ()):
        self.namespace, self.environment, self.files = namespace, store, files
        self.url = f"s3://pyrite/{namespace}"
        # helm does not upgrade a CRD that an earlier test installed.
        options = ("--server-side", "--force-conflicts", "--field-manager=helm")
        kubectl("apply", *options, "-f", str(CHART / "crds"))
        kubectl("create", "namespace", namespace)
        kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        keys = [f"--from-literal={name}={store[name]}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
        kubectl("-n", namespace, "create", "secret", "generic", "store", *keys)
        image = "localhost/pyrite-{}"
        self.values: Object = {
            "store": {
                "url": self.url,
                "region": "us-east-1",
                "endpointUrl": store["AWS_ENDPOINT_URL"],
                "existingSecret": "store",
            },
            "controller": {"image": {"repository": image.format("controller")}},
            # Small requests, so that two runs fit on a node with two cores.
            "worker": {"image": {"repository": image.format("worker")}, "stages": dict.fromkeys(STAGES, _SMALL)},
            **values,
        }
        self.helm("install")

    def helm(self, verb: str, **changes: Any) -> str:
        """Install or upgrade the chart; ``changes`` replace some of the release's values."""
        sources = [f"--values={path}" for path in (*self.files, "-")]
        command = [program("helm"), verb, "pyrite", str(CHART), "-n", self.namespace, *sources, "--wait"]
        values = json.dumps({**self.values, **changes})
        done = subprocess.run(command, input=values, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def uninstall(self) -> None:
        """Remove the release, if it is installed."""
        command = [program("helm"), "uninstall", "pyrite", "-n", self.namespace, "--ignore-not-found"]
        subprocess.run(command, capture_output=True, timeout=300, check=True)

    def close(self) -> None:
        kubectl("-n", self.namespace, "delete", "trainingruns", "--all", "--wait=false", check=False)
        self.uninstall()
        kubectl("delete", "namespace", self.namespace, "--wait=false", check=False)

    def get(self, *arguments: str) -> Object:
        """An object or a list of objects."""
        found: Object = json.loads(kubectl("-n", self.namespace, "get", *arguments, "-o", "json"))
        return found

    def items(self, kind: str, **labels: str) -> list[Object]:
        arguments = [f"-l={name.replace('_', '/')}={value}" for name, value in labels.items()]
        return list(self.get(kind, *arguments)["items"])

    def status(self, run: str) -> Object:
        found: Object = self.get("trainingrun", run).get("status", {})
        return found

    def apply(self, name: str, spec: Object) -> None:
        manifest = {
            "apiVersion": "pyrite.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": name},
            "spec": spec,
        }
        kubectl("-n", self.namespace, "apply", "-f", "-", stdin=json.dumps(manifest))

    def edit(self, run: str, **spec: Any) -> None:
        patch = json.dumps({"spec": spec})
        kubectl("-n", self.namespace, "patch", "trainingrun", run, "--type=merge", "-p", patch)

    def pods(self, run: str, stage: str | None = None) -> list[Object]:
        labels = f"pyrite.dev/run={run}" + (f",pyrite.dev/stage={stage}" if stage else "")
        return list(self.get("pods", "-l", labels)["items"])

    def running(self, run: str, stage: str) -> Object:
        """Wait for a running pod of ``stage``."""

        def poll() -> Object | None:
            return next(filter(is_running, self.pods(run, stage)), None)

        return wait_until(f"{stage} of {run} runs", poll, 600, every=0.3)

    def jobs(self, run: str, stage: str | None = None) -> list[Object]:
        labels = f"pyrite.dev/run={run}" + (f",pyrite.dev/stage={stage}" if stage else "")
        return list(self.get("jobs", "-l", labels)["items"])

    def controllers(self, number: int) -> list[Object]:
        """Wait until exactly ``number`` controller pods are ready."""

        def poll() -> list[Object] | None:
            pods = self.get("pods", "-l", CONTROLLER)["items"]
            ready = [
                pod
                for pod in filter(is_running, pods)
                if all(container["ready"] for container in pod["status"]["containerStatuses"])
            ]
            return ready if len(ready) == len(pods) == number else None

        return wait_until(f"{number} controllers run", poll, 150)

    def controller(self) -> Object:
        (pod,) = self.controllers(1)
        return pod

    def metric(self, pod: Object, name: str) -> float:
        """The current value of a pod's metric that has no labels."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}:9100/proxy/metrics"
        found = re.search(rf"^{name} (\S+)$", kubectl("get", "--raw", path), re.MULTILINE)
        assert found, f"{name} is not exported"
        return float(found[1])

    def wait(self, run: str, *phases: str, seconds: float = 1200) -> Object:
        """Wait until the run's phase is one of ``phases`` (default: Succeeded), and return its status."""
        wanted = phases or ("Succeeded",)
        last: Object = {}

        def poll() -> Object | None:
            last.clear()
            last.update(self.status(run))
            if not phases:
                assert last.get("phase") != "Failed", last
            return last if last.get("phase") in wanted else None

        try:
            return wait_until(f"run {run} is {wanted}", poll, seconds, every=1)
        except AssertionError as error:
            raise AssertionError(f"{error}; its status is {last}") from None

    def wait_stage(self, run: str, stage: str) -> Object:
        """Wait for a running pod of ``stage``, and return the run's status."""
        self.running(run, stage)
        return self.status(run)

    def pyrite(self, *arguments: str, seconds: float = 900) -> "subprocess.CompletedProcess[str]":
        """Run the CLI outside the cluster, with a pod's number of threads and without this shell's BLAS settings.

        Regression: OPENBLAS_CORETYPE selects other kernels, which change the last bit of a score.
        """
        command = [sys.executable, "-m", "pyrite", *arguments]
        threads = min(int(_SMALL["resources"]["limits"]["cpu"]), os.cpu_count() or 1)
        own = {name: value for name, value in os.environ.items() if not name.startswith(("OPENBLAS_", "MKL_"))}
        environment = {**own, **self.environment, "PYRITE_STORE": self.url, "OMP_NUM_THREADS": str(threads)}
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)

    def digests(self, run: str) -> dict[str, str]:
        """The digests of all outputs of a run's finished steps, by key."""
        client = self.s3()
        prefix = f"{self.namespace}/runs/{run}/steps/"
        found = {}
        for entry in client.list_objects_v2(Bucket="pyrite", Prefix=prefix).get("Contents", []):
            manifest = json.loads(client.get_object(Bucket="pyrite", Key=entry["Key"])["Body"].read())
            for output in manifest.get("outputs", []):
                found[output["key"]] = output["sha256"]
        return found

    def put(self, name: str, data: bytes) -> str:
        """Write a file to S3 and return its URL."""
        self.s3().put_object(Bucket="pyrite", Key=f"{self.namespace}-data/{name}", Body=data)
        return f"s3://pyrite/{self.namespace}-data/{name}"

    def s3(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )
