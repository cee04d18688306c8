"""Build the container images in images/ with docker, podman or buildah, and print their platforms and sizes.

    python3 scripts/images.py [--gpu] [--only worker] [--base IMAGE] [--tool buildah]
    python3 scripts/images.py --gpu --push REGISTRY [--create-repositories] [--platform linux/amd64]

The tag is the version in pyproject.toml, with the suffix -cuda for the CUDA worker. The build uses the indexes,
certificates and wheel folders of your pip configuration, but does not store them in the images. The script needs only
Python. Without an image registry, run `scripts/base_image.sh` and pass `--base pyrite-base:bookworm`.

Images to push are built for linux/amd64, also on an arm64 machine: the nodes in infra/eks.yaml have no other processor.
For Amazon ECR, the script logs in with the `aws` command.
"""

import argparse
import ast
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMAGES = ("controller", "worker")
TOOLS = ("docker", "podman", "buildah")
PLATFORMS = ("linux/amd64", "linux/arm64")
REGISTRY = re.compile(r"[A-Za-z0-9.-]+(:\d+)?(/[a-z0-9._-]+)*")  # host and port, path
ECR = re.compile(r"(?P<host>\d+\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?)(/(?P<prefix>.+))?")

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
    tool: str,
    image: str,
    *,
    gpu: bool,
    base: str | None,
    target: str | None,
    registry: str | None,
    options: list[str],
    wheels: Path | None,
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
    if target:
        extra += ["--platform", target]
    name = f"{registry}/pyrite-{image}:{tag}" if registry else f"pyrite-{image}:{tag}"
    # --load: a buildx builder with its own driver leaves the image in its cache otherwise.
    build = {"docker": ["buildx", "build", "--load"], "podman": ["build"], "buildah": ["build", "--layers"]}[tool]
    return [tool, *build, *extra, "--file", f"images/{image}/Dockerfile", "--tag", name, "."]


def host_platform() -> str:
    """The platform of this machine, such as linux/arm64."""
    machine = platform.machine().lower()
    return "linux/" + {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def image_platform(tool: str, name: str) -> str:
    """The platform that a built image declares."""
    if tool == "buildah":
        inspect = [tool, "inspect", "--type", "image", "--format", "{{.OCIv1.OS}}/{{.OCIv1.Architecture}}", name]
    else:
        inspect = [tool, "image", "inspect", "--format", "{{.Os}}/{{.Architecture}}", name]
    return subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.strip()


def prepare_ecr(tool: str, registry: re.Match[str], images: list[str], create: bool) -> None:
    """Log in to Amazon ECR; with ``create``, also create the repositories that do not exist."""
    region = ["--region", registry["region"]]
    if not shutil.which("aws"):
        sys.exit("Cannot log in to ECR: the command `aws` is missing; install the AWS CLI.")
    if create:
        for image in images:
            repository = "/".join(filter(None, [registry["prefix"], f"pyrite-{image}"]))
            made = subprocess.run(
                ["aws", "ecr", "create-repository", "--repository-name", repository, *region],
                capture_output=True,
                text=True,
            )
            if made.returncode and "RepositoryAlreadyExistsException" not in made.stderr:
                sys.exit(f"Cannot create the repository {repository}: {made.stderr.strip()}")
    password = subprocess.run(["aws", "ecr", "get-login-password", *region], capture_output=True, text=True)
    if password.returncode:
        sys.exit(f"Cannot log in to ECR: {password.stderr.strip()}")
    login = [tool, "login", "--username", "AWS", "--password-stdin", registry["host"]]
    if subprocess.run(login, input=password.stdout, text=True).returncode:
        sys.exit(f"{tool} could not log in to {registry['host']}; see its error messages above.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", choices=TOOLS, help="build tool; default: the first that is available")
    parser.add_argument("--only", choices=IMAGES, help="build only this image")
    parser.add_argument("--gpu", action="store_true", help="build the worker with PyTorch's CUDA build (several GB)")
    parser.add_argument("--base", help="base image with Python 3.11; default: the one in the Dockerfile")
    parser.add_argument(
        "--platform", choices=PLATFORMS, help="platform of the images; default: this machine's; with --push linux/amd64"
    )
    parser.add_argument("--push", metavar="REGISTRY", help="push the images to this registry: host/path")
    parser.add_argument("--create-repositories", action="store_true", help="create missing repositories in Amazon ECR")
    arguments = parser.parse_args()
    registry = arguments.push and arguments.push.rstrip("/")
    if registry and not REGISTRY.fullmatch(registry):
        parser.error(f"--push {registry}: give host/path in lower case, without https://.")
    ecr = ECR.fullmatch(registry or "")
    if arguments.create_repositories and not ecr:
        parser.error(f"--create-repositories: {registry or 'no --push'} is not an Amazon ECR registry; leave it out.")
    target = arguments.platform or (PLATFORMS[0] if registry else None)
    images = [arguments.only] if arguments.only else list(IMAGES)
    tool = select_tool(arguments.tool)
    if ecr:
        prepare_ecr(tool, ecr, images, arguments.create_repositories)
    with tempfile.TemporaryDirectory(prefix="pyrite-images-") as folder:
        options, wheels = build_environment(pip_settings(), Path(folder))
        for image in images:
            build = command(
                tool,
                image,
                gpu=arguments.gpu,
                base=arguments.base,
                target=target,
                registry=registry,
                options=options,
                wheels=wheels,
            )
            build_and_push(tool, build, target or host_platform(), push=bool(registry))


def build_and_push(tool: str, build: list[str], target: str, *, push: bool) -> None:
    """Run the command ``build``, verify the image's platform, and push the image."""
    name = build[-2]
    if subprocess.run(build, cwd=ROOT, env={**os.environ, "DOCKER_BUILDKIT": "1"}).returncode:
        emulation = (
            f"\n{target} is not this machine's platform: the build needs QEMU. Docker Desktop includes it; on Debian "
            "and Ubuntu install qemu-user-static."
        )
        sys.exit(
            f"{tool} could not build {name}; see its error messages above.{emulation * (target != host_platform())}"
        )
    built = image_platform(tool, name)
    if built != target:
        sys.exit(
            f"{name} was built for {built}, not for {target}: its nodes would fail with `exec format error`. The base "
            f"image may be for {built} only; pull it again with --platform {target}."
        )
    size = subprocess.run([tool, "images", "--format", "{{.Size}}", name], capture_output=True, text=True)
    print(f"built {name} for {built}, {size.stdout.strip()}", flush=True)
    if built != PLATFORMS[0]:
        print(f"The nodes of values-eks.yaml cannot run it; for them use --platform {PLATFORMS[0]}.", flush=True)
    if push:
        if subprocess.run([tool, "push", name]).returncode:
            sys.exit(f"{tool} could not push {name}; see its error messages above.")
        print(f"pushed {name}", flush=True)


if __name__ == "__main__":
    main()
