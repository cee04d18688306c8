"""A real cluster (KUBECONFIG), Pyrite's images on its node, and a real S3 server that its pods can reach."""

import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from real.cluster.release import ROOT, Object, Release, kubectl
from real.seaweed import NOT_INSTALLED, SCRIPT


@pytest.fixture(scope="session")
def node() -> Object:
    """The cluster's node, with Pyrite's images on it."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set; `make kube` starts a cluster and prints what to export")
    found: Object = json.loads(kubectl("get", "nodes", "-o", "json"))["items"][0]
    with socket.socket() as probe:
        try:
            probe.bind((address(found), 0))
        except OSError:
            pytest.skip(
                "the cluster's node is not this machine (kind's is a container), so pods cannot reach the S3 server"
            )
    if os.environ.get("PYRITE_IMAGES") != "loaded":
        done = subprocess.run(
            ["bash", str(ROOT / "scripts/kube.sh"), "load"], capture_output=True, text=True, check=False
        )
        if done.returncode == 2 and "install" in done.stderr:  # a tool is missing
            pytest.skip(f"Pyrite's images are not on the node: {done.stderr.strip()[-300:]}")
        assert done.returncode == 0, f"the images could not be built or loaded: {done.stderr.strip()[-1000:]}"
    return found


def address(node: Object) -> str:
    return next(str(a["address"]) for a in node["status"]["addresses"] if a["type"] == "InternalIP")


@pytest.fixture(scope="session")
def s3_server(node: Object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment variables for clients of an S3 server on the node's address."""
    folder = tmp_path_factory.mktemp("s3")
    command = [sys.executable, str(SCRIPT), "--port=0", "--no-install", f"--host={address(node)}", f"--folder={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    variables = {}
    for line in process.stdout:
        if line.startswith("# ready"):
            break
        name, _, value = line.removeprefix("export ").strip().partition("=")
        variables[name] = value
    else:
        assert process.wait() == NOT_INSTALLED, "the S3 server did not start"
        pytest.skip("SeaweedFS is not installed; `make real-s3` installs it")
    yield {**variables, "PYRITE_S3_PROCESS": str(process.pid)}
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def release(s3_server: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Release]:
    """A namespace with the chart installed. A module may set VALUES, and VALUES_FILES that come before them."""
    name = Path(request.path).stem.removeprefix("test_").replace("_", "-")  # a Kubernetes name
    values, files = getattr(request.module, "VALUES", {}), getattr(request.module, "VALUES_FILES", ())
    found = Release(f"{name}-{uuid.uuid4().hex[:6]}", s3_server, values, files)
    yield found
    if os.environ.get("PYRITE_KEEP") != "1":
        found.close()


@pytest.fixture(scope="module")
def small_spec(release: Release, questions: Path) -> Callable[..., Object]:
    """The spec of a run that takes a minute or two; the keyword arguments replace settings."""
    url = release.put("questions.jsonl", questions.read_bytes())

    def spec(**settings: Any) -> Object:
        return {
            "source": {"kind": "jsonl", "path": url, "topic": "topic", "type": "type"},
            "prepare": {"min_chars": 40, "max_chars": 400},
            "iterations": 1,
            "judge": {"shards": 4},
            "retrieve": {"range_max": 20},
            "mine": {"num_negatives": 2, "relative_margin": None},
            "finetune": {"batch_size": 8, "checkpoint_every": 2, "max_tokens": 32},
            "evaluate": {"blends": [], "resamples": 200},
            **settings,
        }

    return spec
