"""What a stage is given: the RunSpec, verified inputs, places for outputs, and somebody to tell of its progress."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyrite.errors import PyriteError
from pyrite.plan import Manifests, Step
from pyrite.progress import Progress
from pyrite.spec import RunSpec
from pyrite.store import Checksum, ObjectNotFound, Store, checksum_file


@dataclass
class StepContext:
    """One doing of a stage.

    ``prefix`` is the run's place in the store ("runs/<name>"); all keys that a stage names are below it.
    """

    spec: RunSpec
    step: Step
    store: Store
    prefix: str
    manifests: Manifests
    scratch_key: str
    progress: Progress
    staged: list[str] = field(default_factory=list)
    _verified: dict[str, Path] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        """A local folder that outlives a kill, and is the same when the step is done again with the same inputs.

        Outputs are staged in it.
        """
        return self.store.scratch(self.scratch_key)

    def save_scratch(self, name: str) -> None:
        """Make what now lies in the folder ``name`` of scratch outlive this machine."""
        self.store.save_scratch(f"{self.scratch_key}/{name}")

    def restored_scratch(self, name: str) -> Path:
        """The folder ``name`` of scratch, with what was kept of it on whatever machine."""
        self.store.restore_scratch(f"{self.scratch_key}/{name}")
        return self.store.scratch(f"{self.scratch_key}/{name}")

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
        if prefix not in self._verified:
            entries = [entry for key, entry in self._made().items() if key.startswith(prefix + "/")]
            if not entries:
                raise PyriteError(f"no finished step of this run made {prefix}")
            self._verified[prefix] = verified_folder(self.store, self.prefix, prefix, entries)
        return self._verified[prefix]

    def _made(self) -> dict[str, Mapping[str, Any]]:
        return {entry["key"]: entry for manifest in self.manifests.values() for entry in manifest["outputs"]}

    def _verify(self, key: str) -> Path:
        entry = self._made().get(key)
        if entry is None:
            raise PyriteError(f"no finished step of this run made {key}")
        return verified(self.store, self.prefix, entry)


def verified(store: Store, run: str, entry: Mapping[str, Any]) -> Path:
    """The local path of the output that a manifest's ``entry`` names; ``run`` is the run's place in the store.

    Raises:
        PyriteError: it is not there, or is not what the manifest says.
    """
    key = f"{run}/{entry['key']}"
    try:
        path = store.fetch(key)
    except ObjectNotFound:
        raise PyriteError(
            f"{store}/{key} is gone, though its manifest names it. Use --force on the step that makes it."
        ) from None
    _check(path, f"{store}/{key}", entry)
    return path


def verified_folder(store: Store, run: str, prefix: str, entries: Sequence[Mapping[str, Any]]) -> Path:
    """The local path of the folder ``prefix`` of a run with all of ``entries`` in it. Raises as ``verified`` does."""
    try:
        folder = store.fetch_folder(f"{run}/{prefix}", [f"{run}/{entry['key']}" for entry in entries])
    except ObjectNotFound as error:
        raise PyriteError(f"{error}, though its manifest names it. Use --force on the step that makes it.") from None
    for entry in entries:
        _check(store.local_path(f"{run}/{entry['key']}"), f"{store}/{run}/{entry['key']}", entry)
    return folder


def _check(path: Path, name: str, entry: Mapping[str, Any]) -> None:
    if checksum_file(path) != Checksum(entry["bytes"], entry["sha256"]):
        raise PyriteError(
            f"{name} is not what its manifest says (size or digest differs): it was changed or damaged after it was "
            "made. Use --force on the step that makes it."
        )
