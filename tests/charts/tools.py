"""Render and check the chart with helm and kube-score."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "pyrite"
_HERE = Path(__file__).parent

Object = dict[str, Any]

#: Values for typical installations; each must render without findings.
INSTALLATIONS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "a laptop": (
        "--set=store.url=s3://pyrite/runs,store.endpointUrl=http://10.200.0.1:8333",
        "--set=store.existingSecret=s3",
    ),
    # Only flags that an infrastructure stack can output.
    "eks": (
        *("--values", str(CHART / "values-eks.yaml"), "--set=store.url=s3://bucket/prefix,store.region=us-east-1"),
        "--set=imageRegistry=1234.dkr.ecr.us-east-1.amazonaws.com",
    ),
    "your own endpoint": (
        "--set=store.url=s3://bucket/prefix,judge.existingSecret=key",
        "--set=judge.urls={https://judge.example:8443,http://10.0.0.7}",
    ),
    "everything": ("--values", str(_HERE / "everything.yaml")),
}
API_VERSIONS = tuple(f"--api-versions=monitoring.coreos.com/v1/{kind}" for kind in ("PodMonitor", "PrometheusRule"))


def program(name: str) -> str:
    """Path of the program ``name``, from PATH or bin/ next to the kubeconfig; skips the test if it is missing."""
    bin_folder = Path(os.environ.get("KUBECONFIG", "")).absolute().parent / "bin"
    path = shutil.which(name) or shutil.which(name, path=str(bin_folder))
    if not path:
        pytest.skip(f"{name} is neither on PATH nor in bin/ next to KUBECONFIG")
    return path


def helm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run helm with ``arguments``."""
    return subprocess.run(
        [program("helm"), *arguments], capture_output=True, text=True, timeout=180, env={**os.environ, **environment}
    )


@cache
def rendered(*arguments: str, chart: Path = CHART) -> str:
    """Output of `helm template`."""
    done = helm("template", "pyrite", str(chart), "--namespace=pyrite", *API_VERSIONS, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(*arguments: str, chart: Path = CHART) -> list[Object]:
    """Kubernetes objects in the output of `helm template`."""
    return [one for one in yaml.safe_load_all(rendered(*arguments, chart=chart)) if one]


def get_object(resources: list[Object], kind: str, name: str | None = None) -> Object:
    """The only object of ``kind``, and ``name`` if given."""
    [resource] = [r for r in resources if r["kind"] == kind and name in (None, r["metadata"]["name"])]
    return resource


def pod_specs(resources: list[Object]) -> Iterator[tuple[str, Object]]:
    """Name and spec of all pods of the objects, including the Jobs in the ConfigMap."""
    for one in resources:
        name = f"{one['kind']} {one['metadata']['name']}"
        if one["kind"] == "Pod":
            yield name, one["spec"]
        elif one["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield name, one["spec"]["template"]["spec"]
        elif one["kind"] == "CronJob":
            yield name, one["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        elif one["kind"] == "ConfigMap" and name.endswith("-jobs"):
            for file, text in one["data"].items():
                yield f"{name}/{file}", yaml.safe_load(text)["spec"]["template"]["spec"]


def kube_score(text: str, *arguments: str) -> dict[str, set[str]]:
    """Failed checks per object."""
    done = subprocess.run(
        [program("kube-score"), "score", "--kubernetes-version=v1.34", "--output-format=json", *arguments, "-"],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
    )
    best = 10
    return {
        item["object_name"]: {
            check["check"]["id"] for check in item["checks"] or () if not check["skipped"] and check["grade"] < best
        }
        for item in json.loads(done.stdout)
    }
