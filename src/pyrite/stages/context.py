"""The context of a step: its settings, verified inputs, paths for outputs, and progress display."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """The context of one execution of a step.

    Attributes:
        prefix: the run's prefix in the store ("runs/<name>"). The keys that a stage uses are relative to it.
        staged: keys of the outputs to publish, and prefixes (with "/") of folders of outputs.
    """

    spec: RunSpec
    step: Step
    store: Store
    prefix: str
    manifests: Manifests
    scratch_key: str
    progress: Progress
    staged: list[str] = field(default_factory=list)
    _inputs: dict[str, Path] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        """A local folder that survives a kill. If the step runs again with the same inputs, it gets the same folder."""
        return self.store.scratch(self.scratch_key)

    @contextmanager
    def temporary_folder(self, name: str) -> Iterator[Path]:
        """An empty folder in scratch. It is deleted even after an error: the corrected input has another scratch."""
        folder = self.scratch / name
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def save_scratch(self, name: str) -> None:
        """Save the folder ``name`` of scratch in the store, so that it survives this machine."""
        self.store.save_scratch(f"{self.scratch_key}/{name}")

    def restore_scratch(self, name: str) -> Path:
        """Restore the folder ``name`` of scratch from its last save on any machine, and return its path."""
        self.store.restore_scratch(f"{self.scratch_key}/{name}")
        return self.store.scratch(f"{self.scratch_key}/{name}")

    @property
    def iteration(self) -> int:
        """The step's iteration. Raises PyriteError if it has none."""
        if self.step.iteration is None:
            raise PyriteError(f"{self.step.name} has no iteration")
        return self.step.iteration

    def output(self, key: str) -> Path:
        """The path to write the output ``key`` to. It is published when the step finishes."""
        path = self.scratch / "outputs" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if key not in self.staged:
            self.staged.append(key)
        return path

    def output_folder(self, prefix: str) -> Path:
        """The path of a folder for outputs. All files in it are published when the step finishes."""
        path = self.scratch / "outputs" / prefix
        path.mkdir(parents=True, exist_ok=True)
        self.staged.append(prefix + "/")
        return path

    def input(self, key: str) -> Path:
        """The local path of an earlier step's output, verified against its manifest.

        Raises:
            PyriteError: no step has created it, or it does not match the manifest.
        """
        if key not in self._inputs:
            entry = self._entries().get(key)
            if entry is None:
                raise PyriteError(f"no finished step of this run has created {key}")
            self._inputs[key] = fetch_verified(self.store, self.prefix, entry)
        return self._inputs[key]

    def input_folder(self, prefix: str) -> Path:
        """The local path of a folder of outputs, each file verified. Raises PyriteError as ``input`` does."""
        if prefix not in self._inputs:
            entries = [entry for key, entry in self._entries().items() if key.startswith(prefix + "/")]
            if not entries:
                raise PyriteError(f"no finished step of this run has created {prefix}")
            self._inputs[prefix] = fetch_verified_folder(self.store, self.prefix, prefix, entries)
        return self._inputs[prefix]

    def _entries(self) -> dict[str, Mapping[str, Any]]:
        return {entry["key"]: entry for manifest in self.manifests.values() for entry in manifest["outputs"]}


def fetch_verified(store: Store, run: str, entry: Mapping[str, Any]) -> Path:
    """Fetch the output that a manifest's ``entry`` names, and verify it; ``run`` is the run's prefix in the store.

    Raises:
        PyriteError: it does not exist, or does not match the manifest.
    """
    key = f"{run}/{entry['key']}"
    try:
        path = store.fetch(key)
    except ObjectNotFound:
        raise PyriteError(
            f"{store}/{key} is missing, though its manifest names it. Run the step that creates it with --force."
        ) from None
    _verify(path, f"{store}/{key}", entry)
    return path


def fetch_verified_folder(store: Store, run: str, prefix: str, entries: Sequence[Mapping[str, Any]]) -> Path:
    """Fetch the folder ``prefix`` of a run with all of ``entries`` in it. Raises as ``fetch_verified`` does."""
    try:
        folder = store.fetch_folder(f"{run}/{prefix}", [f"{run}/{entry['key']}" for entry in entries])
    except ObjectNotFound as error:
        raise PyriteError(
            f"{error}, though its manifest names it. Run the step that creates it with --force."
        ) from None
    for entry in entries:
        _verify(store.local_path(f"{run}/{entry['key']}"), f"{store}/{run}/{entry['key']}", entry)
    return folder


def _verify(path: Path, name: str, entry: Mapping[str, Any]) -> None:
    if checksum_file(path) != Checksum(entry["bytes"], entry["sha256"]):
        raise PyriteError(
            f"{name} does not match its manifest (size or sha256 differs): it was changed or damaged later. "
            "Run the step that creates it with --force."
        )
