"""What can be said of images/ without building them."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def pins(file: str) -> dict[str, str]:
    """A requirements file's versions by package, names as the index compares them."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    found = [line.split("==") for line in lines if line]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_images_and_make_train_pin_the_same_versions() -> None:
    """A version raised in one file only would make the cluster's run differ from the laptop's."""
    ours, worker, controller = (
        pins(file)
        for file in ("requirements.txt", "images/worker/constraints.txt", "images/controller/requirements.txt")
    )
    assert not ours.keys() & worker.keys()
    known = ours | worker
    assert {name: version for name, version in controller.items() if known.get(name, version) != version} == {}
    assert {"kubernetes", "boto3", "pydantic", "pyyaml", "tenacity", "prometheus-client"} <= controller.keys()


def test_says_what_to_install_where_nothing_can_build(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, ROOT / "scripts/images.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no docker or podman or buildah" in done.stderr
    assert "scripts/install_buildah.sh" in done.stderr
