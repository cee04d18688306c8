"""Checks of images/ and scripts/images.py that build no image."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def pins(file: str) -> dict[str, str]:
    """Pinned versions by normalized package name."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    requirements = [line.split("==") for line in lines if line]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in requirements}


def test_images_and_make_setup_pin_the_same_versions() -> None:
    """Different versions would make a run in the cluster differ from a local run."""
    local, worker, controller = (
        pins(file)
        for file in ("requirements.txt", "images/worker/constraints.txt", "images/controller/requirements.txt")
    )
    assert not local.keys() & worker.keys()
    pinned = local | worker
    assert {name: version for name, version in controller.items() if pinned.get(name, version) != version} == {}
    assert {"kubernetes", "boto3", "pydantic", "pyyaml", "tenacity", "prometheus-client"} <= controller.keys()


def test_a_missing_build_tool_is_reported(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, ROOT / "scripts/images.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "none of docker, podman, buildah works" in done.stderr
    assert "scripts/install_buildah.sh" in done.stderr


ECR = "123456789012.dkr.ecr.us-east-1.amazonaws.com/pyrite"

#: A double of docker, podman, buildah and aws that records its arguments. BUILT is the platform of its images.
DOUBLE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$(basename "$0") $*" in
  *inspect*) echo "$BUILT";;
  *login*--password-stdin*) cat >> "$CALLS";;
  aws*get-login-password*) echo secret;;
  aws*create-repository*worker*) echo "RepositoryAlreadyExistsException" >&2; exit 254;;
esac
"""


class Builder:
    """Runs scripts/images.py with doubles of all programs that it calls, on a machine of another architecture."""

    def __init__(self, folder: Path, tool: str, built: str):
        self._calls = folder / "calls"
        self._calls.touch()
        for name in (tool, "aws"):
            (folder / name).write_text(DOUBLE)
            (folder / name).chmod(0o755)
        # The script asks platform.machine(), which reads os.uname(); a sitecustomize module replaces it.
        (folder / "sitecustomize.py").write_text("import platform\nplatform.machine = lambda: 'arm64'\n")
        path = f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin"
        self._environment = {"PATH": path, "PYTHONPATH": str(folder), "CALLS": str(self._calls), "BUILT": built}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, ROOT / "scripts/images.py", *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True)

    def calls(self, program: str) -> list[str]:
        return [line.removeprefix(f"{program} ") for line in self._calls.read_text().splitlines() if program in line]


@pytest.mark.parametrize(
    ("tool", "build"),
    [("docker", "buildx build --load"), ("podman", "build"), ("buildah", "build --layers")],
)
def test_pushed_images_are_for_amd64_by_default(tmp_path: Path, tool: str, build: str) -> None:
    """Although the machine is an arm64 laptop."""
    builder = Builder(tmp_path, tool, "linux/amd64")
    done = builder.run("--tool", tool, "--gpu", "--push", ECR, "--create-repositories")
    assert done.returncode == 0, done.stderr
    name = f"{ECR}/pyrite-worker:0.1.0-cuda"
    builds = [call for call in builder.calls(tool) if call.startswith(build)]
    assert len(builds) == 2
    assert all("--platform linux/amd64" in call for call in builds)
    assert f"push {name}" in builder.calls(tool)
    assert f"built {name} for linux/amd64" in done.stdout
    assert [call for call in builder.calls("aws") if "create-repository" in call] == [
        f"ecr create-repository --repository-name pyrite/pyrite-{image} --region us-east-1"
        for image in ("controller", "worker")
    ]
    assert f"login --username AWS --password-stdin {ECR.partition('/')[0]}" in builder.calls(tool)


def test_image_of_another_platform_is_not_pushed(tmp_path: Path) -> None:
    builder = Builder(tmp_path, "docker", "linux/arm64")
    done = builder.run("--push", "registry.example.com/team")
    assert done.returncode == 1
    assert "was built for linux/arm64, not for linux/amd64" in done.stderr
    assert not [call for call in builder.calls("docker") if call.startswith("push")]


@pytest.mark.parametrize("registry", ["https://registry.example.com/team", "registry.example.com/Team"])
def test_invalid_registry_is_refused_before_the_build(tmp_path: Path, registry: str) -> None:
    builder = Builder(tmp_path, "docker", "linux/amd64")
    done = builder.run("--push", registry)
    assert done.returncode == 2
    assert "give host/path in lower case" in done.stderr
    assert not builder.calls("docker")


def test_local_arm64_image_is_reported_as_unusable_on_eks(tmp_path: Path) -> None:
    done = Builder(tmp_path, "docker", "linux/arm64").run("--only", "controller")
    assert done.returncode == 0, done.stderr
    assert "for linux/arm64" in done.stdout
    assert "The nodes of values-eks.yaml cannot run it; for them use --platform linux/amd64." in done.stdout


def test_create_repositories_needs_ecr(tmp_path: Path) -> None:
    done = Builder(tmp_path, "docker", "").run("--push", "registry.example.com", "--create-repositories")
    assert done.returncode == 2
    assert "registry.example.com is not an Amazon ECR registry" in done.stderr
