"""Build the images in images/ with docker, podman or buildah, whichever is there, and say their sizes.

    python3 scripts/images.py [--gpu] [--only worker] [--base IMAGE] [--tool buildah]

The tag is the version in pyproject.toml; the CUDA worker's ends in -cuda. What pip's configuration on this machine says
of indexes, certificates and folders of wheels holds in the build too, and stays out of the images. Needs nothing but
Python. Without an image registry: `scripts/base_image.sh` makes a base, then `--base pyrite-base:bookworm`.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMAGES = ("controller", "worker")
TOOLS = ("docker", "podman", "buildah")

#: pip's settings that say where packages come from. Times and caches are the image's business.
_SOURCES = ("index-url", "extra-index-url", "trusted-host", "proxy", "find-links")


def works(tool: str) -> bool:
    """Whether ``tool`` is there and, in docker's case, has a daemon that answers."""
    if not shutil.which(tool):
        return False
    return subprocess.run([tool, "info"], capture_output=True).returncode == 0


def choose(wanted: str | None) -> str:
    """The tool to build with; leaves with words where there is none."""
    for tool in [wanted] if wanted else TOOLS:
        if works(tool):
            return tool
    sys.exit(
        f"images: no {' or '.join([wanted] if wanted else TOOLS)} is here and answers "
        "(docker is of use only with its daemon running).\n"
        "Install one: Docker (docs.docker.com/engine/install), or `apt-get install podman` on Debian and Ubuntu, or, "
        "as root, scripts/install_buildah.sh."
    )


def version() -> str:
    """The version that pyproject.toml says."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def revision() -> str:
    """The commit that is built, marked where the tree differs from it."""
    if not shutil.which("git"):
        return "unknown"
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(git, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def pip_settings() -> dict[str, str]:
    """pip's configuration on this machine, files and environment together; {} where there is no pip."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(pip, capture_output=True, text=True).stdout.splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {name.rpartition(".")[2]: ast.literal_eval(value) for name, _, value in pairs}


def build_environment(settings: dict[str, str], folder: Path) -> tuple[list[str], Path | None]:
    """The options that carry pip's ``settings`` into a build, and the folder of wheels that they name, if any.

    What names a file or folder of this machine has no meaning in a build, but for the wheels and the certificates.
    """
    pip_conf = ["[global]"]
    wheels = None
    for name in _SOURCES:
        places = settings.get(name, "").split()
        remote = [place for place in places if "://" in place and not place.startswith("file:")]
        if name == "find-links":
            wheels = next((Path(place) for place in places if Path(place).is_dir()), None)
        elif name == "trusted-host":
            remote = places
        if remote:
            pip_conf.append(f"{name} = {' '.join(remote)}")
    options = []
    certificates = settings.get("cert") or os.environ.get("SSL_CERT_FILE")
    if certificates and Path(certificates).is_file():
        pip_conf.append("cert = /run/secrets/ca")
        options += ["--secret", f"id=ca,src={certificates}"]
    if len(pip_conf) > 1:
        path = folder / "pip.conf"
        path.write_text("\n".join(pip_conf) + "\n")
        options += ["--secret", f"id=pip,src={path}"]
    return options, wheels


def command(
    tool: str, image: str, *, gpu: bool, base: str | None, options: list[str], wheels: Path | None
) -> list[str]:
    """The build's command line; its last word but one is the tag."""
    tag = version()
    arguments = {"VERSION": tag, "REVISION": revision()}
    if base:
        arguments["BASE"] = base
    extra = list(options)
    if image == "worker":
        if gpu:
            tag += "-cuda"
            arguments["TORCH"] = "index"
        elif wheels and any(wheels.glob("torch-*.whl")):
            arguments["TORCH"] = "index"
            extra += ["--build-context", f"wheels={wheels}"]
    for name, value in arguments.items():
        extra += ["--build-arg", f"{name}={value}"]
    layers = ["--layers"] if tool == "buildah" else []
    return [
        tool,
        "build",
        *layers,
        *extra,
        "--file",
        f"images/{image}/Dockerfile",
        "--tag",
        f"pyrite-{image}:{tag}",
        ".",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", choices=TOOLS, help="what to build with; the first that is there otherwise")
    parser.add_argument("--only", choices=IMAGES, help="build this image alone")
    parser.add_argument("--gpu", action="store_true", help="the worker with PyTorch's CUDA build: several GB")
    parser.add_argument("--base", help="an image with Python 3.11 to build on, instead of the Dockerfile's")
    chosen = parser.parse_args()
    tool = choose(chosen.tool)
    with tempfile.TemporaryDirectory(prefix="pyrite-images-") as folder:
        options, wheels = build_environment(pip_settings(), Path(folder))
        for image in [chosen.only] if chosen.only else IMAGES:
            build = command(tool, image, gpu=chosen.gpu, base=chosen.base, options=options, wheels=wheels)
            done = subprocess.run(build, cwd=ROOT, env={**os.environ, "DOCKER_BUILDKIT": "1"})
            if done.returncode:
                sys.exit(f"images: {tool} did not build {build[-2]}; the last lines above say why")
            size = subprocess.run(
                [tool, "images", "--format", "{{.Size}}", build[-2]], capture_output=True, text=True
            ).stdout.strip()
            print(f"built {build[-2]}, {size}", flush=True)


if __name__ == "__main__":
    main()
