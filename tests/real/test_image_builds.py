"""Build the images with buildah on a local base image, and run them like restricted pods."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest

from real.container import Container

ROOT = Path(__file__).parent.parent.parent
BASE = "pyrite-base:bookworm"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
UID = 65532

pytestmark = pytest.mark.real


def _build(name: str) -> Iterator[Container]:
    """Build the image with the script of `make images`; without changes this takes seconds."""
    missing = [program for program in ("buildah", "debootstrap", "unshare") if not shutil.which(program)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"building without a registry needs root, {', '.join(missing)}: sudo scripts/install_buildah.sh")
    environment = {"BUILDAH_ISOLATION": "chroot", **os.environ}
    for command in (
        [ROOT / "scripts/base_image.sh", BASE],
        [sys.executable, ROOT / "scripts/images.py", "--tool=buildah", f"--base={BASE}", f"--only={name}"],
    ):
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-3000:]
    container = Container(f"pyrite-{name}:{VERSION}")
    yield container
    container.close()


@pytest.fixture(scope="module")
def worker() -> Iterator[Container]:
    yield from _build("worker")


@pytest.fixture(scope="module")
def controller() -> Iterator[Container]:
    yield from _build("controller")


@pytest.fixture(params=["controller", "worker"])
def image(request: pytest.FixtureRequest) -> Container:
    """Runs the test with each image."""
    container = request.getfixturevalue(request.param)
    assert isinstance(container, Container)
    return container


def test_images_have_labels_and_a_non_root_user(image: Container) -> None:
    labels = image.config["Labels"]
    assert labels["org.opencontainers.image.version"] == VERSION
    assert labels["org.opencontainers.image.revision"] not in ("", "unknown")
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert image.config["User"] == f"{UID}:{UID}"
    settings = dict(setting.split("=", 1) for setting in image.config["Env"])
    # Only these folders are writable in a pod; a library that writes elsewhere crashes.
    assert (settings["PYRITE_CACHE"], settings["HF_HOME"]) == ("/cache", "/cache/huggingface")
    assert (settings["HOME"], settings["MPLCONFIGDIR"]) == ("/tmp", "/tmp/matplotlib")
    output = image.run("-c", "id -u; id -g; touch /opt/x || touch /etc/x || echo refused", entrypoint=["sh"])
    assert output.stdout.split() == [str(UID), str(UID), "refused"]


def test_images_have_no_build_or_install_tools(image: Container) -> None:
    tools = {"pip", "pip3", "uv", "gcc", "cc", "c++", "g++", "clang", "ld", "as", "make", "git", "curl", "wget"}
    found = [name for name in tools for folder in _path(image) if (folder / name).exists()]
    assert not found
    for python in ("/opt/pyrite/bin/python", "/usr/bin/python3"):
        for module in ("pip", "ensurepip", "setuptools"):
            assert image.run("-c", f"import {module}", entrypoint=[python]).returncode == 1
    for cache in ("root/.cache", "tmp", "cache", "var/cache/apt/archives", "var/lib/apt/lists", "run/secrets"):
        assert not [file for file in (image.root / cache).rglob("*") if file.is_file()], cache
    assert not list((image.root / "opt").rglob("tests/__init__.py"))
    assert not [f for f in (image.root / "usr").rglob("*") if f.is_file() and f.stat().st_mode & 0o6000]


def test_images_have_no_configuration_of_the_build_host(image: Container) -> None:
    """pip's configuration and the host's certificates are used in the build, but must not be in the image."""
    names = {file.name for file in image.root.rglob("*")}
    assert not names & {"pip.conf", "uv.toml", "sources.list", "direct_url.json"}
    assert not [word for word in image.config["Env"] if re.match(r"(PIP|UV|SSL|REQUESTS|CURL|AWS)_", word)]
    host_certificates = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
    base = Container(BASE)
    try:
        public = _certificates(base.root / "etc/ssl/certs/ca-certificates.crt") | _certificates(Path(certifi.where()))
    finally:
        base.close()
    added = _certificates(host_certificates) - public
    certificate_files = [f for f in image.root.rglob("*") if f.suffix in (".crt", ".pem") and not f.is_symlink()]
    assert len(certificate_files) > 100
    for file in certificate_files:
        assert not _certificates(file) & added, file
    hosts = _index_hosts()
    for file in (
        f for top in ("etc", "opt") for f in (image.root / top).rglob("*") if f.is_file() and f.suffix != ".so"
    ):
        text = file.read_bytes()
        assert not [host for host in hosts if host.encode() in text], file


def test_the_worker_runs_a_stage(worker: Container, tmp_path: Path) -> None:
    result = worker.run("--version")
    assert (result.stdout.strip(), result.stderr) == (f"pyrite {VERSION}", "")
    os.chown(tmp_path, UID, UID)
    mounts = {ROOT / "src/pyrite/examples/sample.yaml": "/run/run.yaml", tmp_path: "/store"}
    done = worker.run("prepare", "/run/run.yaml", "--store", "/store", mounts=mounts)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/sample/steps/*"))


def test_the_worker_has_all_imports_of_all_stages(worker: Container) -> None:
    """trim.sh must not remove a module that a stage imports."""
    stages = sorted(path.stem for path in (ROOT / "src/pyrite/stages").glob("[!_]*.py"))
    code = (
        f"import {', '.join(f'pyrite.stages.{stage}' for stage in stages)}\n"
        "import boto3, pyrite.store.s3, sentence_transformers, matplotlib.pyplot, pyarrow.dataset\n"
        "[boto3.client(s, region_name='eu-west-1') for s in ('s3', 'sts', 'sso', 'sso-oidc')]\n"
    )
    assert "judge" in stages
    done = worker.run("-W", "ignore", "-c", code, entrypoint=["python"])
    assert done.returncode == 0, done.stderr


def test_the_controller_starts_without_heavy_packages(controller: Container) -> None:
    imports = "import sys, pyrite.controller.__main__, pyrite.store.s3, kubernetes.client, boto3\n"
    imports += "[boto3.client(s, region_name='eu-west-1') for s in ('s3', 'sts')]\n"
    assert controller.run("-c", imports, entrypoint=["python"]).returncode == 0
    for heavy in ("torch", "pyarrow", "numpy", "transformers"):
        assert controller.run("-c", f"import {heavy}", entrypoint=["python"]).returncode == 1
    result = controller.run()
    assert result.returncode != 0
    assert "No module named" not in result.stderr


def _path(image: Container) -> list[Path]:
    folders = next(word for word in image.config["Env"] if word.startswith("PATH=")).removeprefix("PATH=").split(":")
    return [image.root / folder.lstrip("/") for folder in [*folders, "/usr/sbin", "/opt/installer/bin"]]


def _certificates(file: Path) -> set[str]:
    text = file.read_text(errors="replace")
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    return {hashlib.sha256("".join(block.split()).encode()).hexdigest() for block in blocks}


def _index_hosts() -> set[str]:
    """Host names in pip's local configuration."""
    config = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    return set(re.findall(r"https?://(?:[^@/\s']*@)?([^/:\s']+)", config))
