"""Checks of images/ and scripts/images.py that build no image."""

import os
import re
import subprocess
import sys
from pathlib import Path

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
