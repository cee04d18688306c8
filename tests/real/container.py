"""Run an image from buildah's storage like a restricted pod, without a container engine.

The root file system is read-only, the user is the image's, and there are no capabilities and no network. /tmp and
/cache are empty and writable, like emptyDirs. All mounts are in a mount namespace that ends with the process.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_RUN = r"""
set -eu
mount --bind "$ROOT" "$ROOT"
for pair in $MOUNTS; do
  to=$ROOT${pair#*=}
  mount --bind "${pair%%=*}" "$to"
done
for folder in tmp cache; do mount -t tmpfs -o mode=1777 none "$ROOT/$folder"; done
mount -t proc none "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -o remount,bind,ro "$ROOT"
exec chroot --userspec="$RUN_AS" --groups= "$ROOT" /usr/bin/env -i --chdir=/tmp "$@"
"""


class Container:
    """A container of ``image``; ``close`` removes it. Needs root and buildah."""

    def __init__(self, image: str):
        self._name = _buildah("from", "--pull-never", image)
        self.root = Path(_buildah("mount", self._name))
        self.config: dict[str, Any] = json.loads(_buildah("inspect", "--type", "image", image))["OCIv1"]["config"]

    def run(
        self, *arguments: str, entrypoint: Sequence[str] | None = None, mounts: Mapping[Path, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run the entrypoint with ``arguments``; ``mounts`` maps local paths to paths in the container."""
        for source, target in (mounts or {}).items():
            mount_point = self.root / target.lstrip("/")
            if source.is_dir():
                mount_point.mkdir(parents=True, exist_ok=True)
            else:
                mount_point.parent.mkdir(parents=True, exist_ok=True)
                mount_point.touch()
        command = [*(self.config["Entrypoint"] if entrypoint is None else entrypoint), *arguments]
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "ROOT": str(self.root),
            "RUN_AS": self.config["User"],
            "MOUNTS": " ".join(f"{source}={target}" for source, target in (mounts or {}).items()),
        }
        return subprocess.run(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child",
             "sh", "-c", _RUN, "sh", *self.config["Env"], *command],
            env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    def close(self) -> None:
        _buildah("rm", self._name)


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"buildah {' '.join(arguments)}: {done.stderr}"
    return done.stdout.strip()
