"""Build the container images in images/ with docker, podman or buildah, and print their sizes.

    python3 scripts/images.py [--gpu] [--only worker] [--base IMAGE] [--tool buildah]

The tag is the version in pyproject.toml, with the suffix -cuda for the CUDA worker. The build uses the indexes,
certificates and wheel folders of your pip configuration, but does not store them in the images. The script needs only
Python. Without an image registry, run `scripts/base_image.sh` and pass `--base pyrite-base:bookworm`.
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

#: pip settings for package sources; the build does not use other settings, such as timeouts and caches.
_SOURCES = ("index-url", "extra-index-url", "trusted-host", "proxy", "find-links")


def is_available(tool: str) -> bool:
    """Whether ``tool`` is installed and, for docker, its daemon responds."""
    if not shutil.which(tool):
        return False
    return subprocess.run([tool, "info"], capture_output=True).returncode == 0


def select_tool(requested: str | None) -> str:
    """Return the requested or first available tool; exit with a message if there is none."""
    candidates = [requested] if requested else list(TOOLS)
    for tool in candidates:
        if is_available(tool):
            return tool
    sys.exit(
        f"Cannot build the images: none of {', '.join(candidates)} works (docker needs a running daemon).\n"
        "Install Docker (docs.docker.com/engine/install), podman (`apt-get install podman` on Debian and Ubuntu), or "
        "buildah (as root: scripts/install_buildah.sh)."
    )


def version() -> str:
    """The version in pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def revision() -> str:
    """The current commit, with the suffix -dirty if the working tree differs from it."""
    if not shutil.which("git"):
        return "unknown"
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    result = subprocess.run(git, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def pip_settings() -> dict[str, str]:
    """pip's effective configuration from files and environment; {} without pip."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(pip, capture_output=True, text=True).stdout.splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {name.rpartition(".")[2]: ast.literal_eval(value) for name, _, value in pairs}


def build_environment(settings: dict[str, str], folder: Path) -> tuple[list[str], Path | None]:
    """Return the build options for pip's ``settings``, and the wheel folder if they name one.

    Local paths do not exist in the build, so only the wheel folder and the certificates are passed on.
    """
    pip_conf = ["[global]"]
    wheels = None
    for name in _SOURCES:
        locations = settings.get(name, "").split()
        remote = [location for location in locations if "://" in location and not location.startswith("file:")]
        if name == "find-links":
            wheels = next((Path(location) for location in locations if Path(location).is_dir()), None)
        elif name == "trusted-host":
            remote = locations
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
    """Return the build command; its second-last argument is the image name."""
    tag = version()
    build_args = {"VERSION": tag, "REVISION": revision()}
    if base:
        build_args["BASE"] = base
    extra = list(options)
    if image == "worker":
        if gpu:
            tag += "-cuda"
            build_args["TORCH"] = "index"
        elif wheels and any(wheels.glob("torch-*.whl")):
            build_args["TORCH"] = "index"
            extra += ["--build-context", f"wheels={wheels}"]
    for name, value in build_args.items():
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
    parser.add_argument("--tool", choices=TOOLS, help="build tool; default: the first that is available")
    parser.add_argument("--only", choices=IMAGES, help="build only this image")
    parser.add_argument("--gpu", action="store_true", help="build the worker with PyTorch's CUDA build (several GB)")
    parser.add_argument("--base", help="base image with Python 3.11; default: the one in the Dockerfile")
    arguments = parser.parse_args()
    tool = select_tool(arguments.tool)
    with tempfile.TemporaryDirectory(prefix="pyrite-images-") as folder:
        options, wheels = build_environment(pip_settings(), Path(folder))
        for image in [arguments.only] if arguments.only else IMAGES:
            build = command(tool, image, gpu=arguments.gpu, base=arguments.base, options=options, wheels=wheels)
            result = subprocess.run(build, cwd=ROOT, env={**os.environ, "DOCKER_BUILDKIT": "1"})
            if result.returncode:
                sys.exit(f"{tool} could not build {build[-2]}; see its error messages above.")
            size = subprocess.run(
                [tool, "images", "--format", "{{.Size}}", build[-2]], capture_output=True, text=True
            ).stdout.strip()
            print(f"built {build[-2]}, {size}", flush=True)


if __name__ == "__main__":
    main()
