"""The images, built for real with buildah on a base made here, and run as a restricted pod runs them."""

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


def _built(name: str) -> Iterator[Container]:
    """The image, built by what `make images` calls; without a change since the last time that takes seconds."""
    absent = [program for program in ("buildah", "debootstrap", "unshare") if not shutil.which(program)]
    if absent or os.geteuid() != 0:
        pytest.skip(f"building without a registry needs root, {', '.join(absent)}: sudo scripts/install_buildah.sh")
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
    yield from _built("worker")


@pytest.fixture(scope="module")
def controller() -> Iterator[Container]:
    yield from _built("controller")


@pytest.fixture(params=["controller", "worker"])
def image(request: pytest.FixtureRequest) -> Container:
    """Each of them."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Container)
    return found


def test_says_what_it_is_and_runs_as_nobody_in_particular(image: Container) -> None:
    labels = image.config["Labels"]
    assert labels["org.opencontainers.image.version"] == VERSION
    assert labels["org.opencontainers.image.revision"] not in ("", "unknown")
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert image.config["User"] == f"{UID}:{UID}"
    settings = dict(setting.split("=", 1) for setting in image.config["Env"])
    # All that is writable in a pod; a library that writes elsewhere by default crashes there.
    assert (settings["PYRITE_CACHE"], settings["HF_HOME"]) == ("/cache", "/cache/huggingface")
    assert (settings["HOME"], settings["MPLCONFIGDIR"]) == ("/tmp", "/tmp/matplotlib")
    seen = image.run("-c", "id -u; id -g; touch /opt/x || touch /etc/x || echo refused", entrypoint=["sh"])
    assert seen.stdout.split() == [str(UID), str(UID), "refused"]


def test_holds_nothing_to_build_or_install_with(image: Container) -> None:
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


def test_keeps_nothing_of_the_machine_that_built_it(image: Container) -> None:
    """pip's configuration and the machine's certificates are there while building; neither may be in the image."""
    names = {file.name for file in image.root.rglob("*")}
    assert not names & {"pip.conf", "uv.toml", "sources.list", "direct_url.json"}
    assert not [word for word in image.config["Env"] if re.match(r"(PIP|UV|SSL|REQUESTS|CURL|AWS)_", word)]
    ours = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
    base = Container(BASE)
    try:
        public = _certificates(base.root / "etc/ssl/certs/ca-certificates.crt") | _certificates(Path(certifi.where()))
    finally:
        base.close()
    added = _certificates(ours) - public
    everything = [f for f in image.root.rglob("*") if f.suffix in (".crt", ".pem") and not f.is_symlink()]
    assert len(everything) > 100
    for file in everything:
        assert not _certificates(file) & added, file
    hosts = _index_hosts()
    for file in (
        f for top in ("etc", "opt") for f in (image.root / top).rglob("*") if f.is_file() and f.suffix != ".so"
    ):
        text = file.read_bytes()
        assert not [host for host in hosts if host.encode() in text], file


def test_the_worker_runs_a_stage(worker: Container, tmp_path: Path) -> None:
    said = worker.run("--version")
    assert (said.stdout.strip(), said.stderr) == (f"pyrite {VERSION}", "")
    os.chown(tmp_path, UID, UID)
    mounts = {ROOT / "src/pyrite/examples/sample.yaml": "/run/run.yaml", tmp_path: "/store"}
    done = worker.run("prepare", "/run/run.yaml", "--store", "/store", mounts=mounts)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/sample/steps/*"))


def test_the_worker_has_what_every_stage_imports(worker: Container) -> None:
    """What was cut out of the packages (tests, headers, botocore's other services) was not needed after all."""
    stages = sorted(path.stem for path in (ROOT / "src/pyrite/stages").glob("[!_]*.py"))
    code = (
        f"import {', '.join(f'pyrite.stages.{stage}' for stage in stages)}\n"
        "import boto3, pyrite.store.s3, sentence_transformers, matplotlib.pyplot, pyarrow.dataset\n"
        "[boto3.client(s, region_name='eu-west-1') for s in ('s3', 'sts', 'sso', 'sso-oidc')]\n"
    )
    assert "judge" in stages
    done = worker.run("-W", "ignore", "-c", code, entrypoint=["python"])
    assert done.returncode == 0, done.stderr


def test_the_controller_starts_and_is_light(controller: Container) -> None:
    light = "import sys, pyrite.controller.__main__, pyrite.store.s3, kubernetes.client, boto3\n"
    light += "[boto3.client(s, region_name='eu-west-1') for s in ('s3', 'sts')]\n"
    assert controller.run("-c", light, entrypoint=["python"]).returncode == 0
    for heavy in ("torch", "pyarrow", "numpy", "transformers"):
        assert controller.run("-c", f"import {heavy}", entrypoint=["python"]).returncode == 1
    said = controller.run()
    assert said.returncode != 0
    assert "No module named" not in said.stderr


def _path(image: Container) -> list[Path]:
    folders = next(word for word in image.config["Env"] if word.startswith("PATH=")).removeprefix("PATH=").split(":")
    return [image.root / folder.lstrip("/") for folder in [*folders, "/usr/sbin", "/opt/installer/bin"]]


def _certificates(file: Path) -> set[str]:
    text = file.read_text(errors="replace")
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    return {hashlib.sha256("".join(block.split()).encode()).hexdigest() for block in blocks}


def _index_hosts() -> set[str]:
    """The hosts that this machine's own configuration of pip names."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    return set(re.findall(r"https?://(?:[^@/\s']*@)?([^/:\s']+)", said))
