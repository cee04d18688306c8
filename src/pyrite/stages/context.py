"""What a stage is given: the RunSpec, verified inputs, places for outputs, and somebody to tell of its progress."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyrite.errors import PyriteError
from pyrite.plan import Manifests, Step
from pyrite.progress import Progress
from pyrite.spec import RunSpec
from pyrite.store import Store, sha256_file


@dataclass
class StepContext:
    """One doing of a stage.

    ``prefix`` is the run's place in the store ("runs/<name>"); all keys that a stage names are below it. ``scratch``
    outlives a kill and is the same folder when the step is done again with the same inputs; outputs are staged in it.
    """

    spec: RunSpec
    step: Step
    store: Store
    prefix: str
    manifests: Manifests
    scratch: Path
    progress: Progress
    staged: list[str] = field(default_factory=list)
    _verified: dict[str, Path] = field(default_factory=dict)

    @property
    def iteration(self) -> int:
        """The iteration of a step that has one."""
        if self.step.iteration is None:
            raise PyriteError(f"{self.step.name} has no iteration")
        return self.step.iteration

    def output(self, key: str) -> Path:
        """Where to write the output ``key``. It appears in the store when the step is finished, never before."""
        path = self.scratch / "outputs" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if key not in self.staged:
            self.staged.append(key)
        return path

    def output_folder(self, prefix: str) -> Path:
        """Where to write a folder of outputs; what stands there when the stage returns is published."""
        path = self.scratch / "outputs" / prefix
        path.mkdir(parents=True, exist_ok=True)
        self.staged.append(prefix + "/")
        return path

    def input(self, key: str) -> Path:
        """The local path of an output of an earlier step, its size and digest checked against the manifest.

        Raises:
            PyriteError: no step made it, or it is not what the manifest says.
        """
        if key not in self._verified:
            self._verified[key] = self._verify(key)
        return self._verified[key]

    def input_folder(self, prefix: str) -> Path:
        """The local path of a folder of outputs, each file checked. Raises PyriteError as ``input`` does."""
        keys = [key for key in self._made() if key.startswith(prefix + "/")]
        if not keys:
            raise PyriteError(f"no finished step of this run made {prefix}")
        for key in keys:
            self.input(key)
        return self.store.path(f"{self.prefix}/{prefix}")

    def _made(self) -> dict[str, Mapping[str, Any]]:
        return {entry["key"]: entry for manifest in self.manifests.values() for entry in manifest["outputs"]}

    def _verify(self, key: str) -> Path:
        entry = self._made().get(key)
        if entry is None:
            raise PyriteError(f"no finished step of this run made {key}")
        path = self.store.path(f"{self.prefix}/{key}")
        if not path.is_file():
            raise PyriteError(f"{path} is gone, though its manifest names it. Use --force on the step that makes it.")
        if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
            raise PyriteError(
                f"{path} is not what its manifest says (size or digest differs): it was changed or damaged after it "
                "was made. Use --force on the step that makes it."
            )
        return path
