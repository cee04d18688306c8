"""Publishes a step's outputs, and then its manifest, which makes the step finished.

Locks keep two processes on one machine from running the same step, but not two machines. So a step may run twice, but
only one manifest is written: each write is conditional on the manifest read before. The slower process uses the
manifest of the faster one if the store holds its outputs.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyrite.errors import PyriteError, UserError
from pyrite.store import Checksum, Store

#: Conditional puts that may fail because of other processes, before this one gives up.
_PUT_ATTEMPTS = 5

#: How long another process may take from its last output to its manifest.
_MANIFEST_TIMEOUT_SECONDS = 60.0

Manifest = dict[str, Any]
Entry = Mapping[str, Any]


def manifests_below(store: Store, prefix: str) -> dict[str, Manifest]:
    """The manifests of a run's finished steps, by step name.

    Raises:
        UserError: a manifest is damaged.
    """
    manifests = {}
    for key in store.keys(f"{prefix}/steps"):
        try:
            manifest = json.loads(store.read(key))
        except ValueError as error:
            raise UserError(f"{store}: {key} is not valid JSON ({error}); delete it to run its step again.") from None
        if "void" not in manifest:
            manifests[manifest["step"]] = manifest
    return manifests


class Publication:
    """Publishes one execution of the step ``name``; ``key`` is the digest of what the step depends on.

    ``attempt`` identifies the execution. The manifest must contain it, so that no two manifests are equal.
    """

    def __init__(self, store: Store, prefix: str, name: str, key: str):
        self._store, self._prefix, self._name, self._key = store, prefix, name, key
        self._manifest_key = f"{prefix}/steps/{name}.json"
        self._initial = store.read_versioned(self._manifest_key)
        self._current = self._initial
        self.attempt = uuid.uuid4().hex

    def publish_outputs(self, paths: Mapping[str, Path], entries: Sequence[Entry]) -> Manifest | None:
        """Move the files ``paths`` to their keys; ``entries`` describe them in the manifest.

        First voids the current manifest, so that no reader mistakes new outputs for old ones.

        Returns:
            The manifest of another process, if it has finished the same step meanwhile.

        Raises:
            PyriteError: the store's contents differ from what was written.
        """
        self._current = self._store.read_versioned(self._manifest_key)
        old_entries: Sequence[Entry] = ()
        for _ in range(_PUT_ATTEMPTS):
            if self._current != self._initial and (finished := self._finished_elsewhere()):
                return finished
            if self._current is None:
                break
            manifest = json.loads(self._current.data)
            old_entries = manifest["outputs"]
            if "void" in manifest:
                break
            void = {"step": self._name, "void": self.attempt, "outputs": old_entries}
            self._current = self._store.conditional_put(self._manifest_key, json.dumps(void).encode(), self._current)
        else:
            raise self._conflict()
        for entry in old_entries:
            if entry["key"] not in paths:
                self._store.delete(f"{self._prefix}/{entry['key']}")
        for key, path in paths.items():
            self._store.publish(path, f"{self._prefix}/{key}")
        return self._await_outputs(entries)

    def publish_manifest(self, manifest: Manifest) -> Manifest:
        """Write the manifest. Returns it, or the manifest of another process that has finished the same step.

        Raises:
            PyriteError: the outputs in the store match neither manifest.
        """
        data = json.dumps(manifest, indent=1).encode()
        for _ in range(_PUT_ATTEMPTS):
            self._current = self._store.conditional_put(self._manifest_key, data, self._current)
            if self._current and self._current.data == data:
                return manifest
            if finished := self._finished_elsewhere():
                return finished
            self._check_outputs(manifest["outputs"])
        raise self._conflict()

    def _await_outputs(self, entries: Sequence[Entry]) -> Manifest | None:
        """If another process has replaced the outputs, wait for the manifest that it is about to write."""
        deadline = time.monotonic() + _MANIFEST_TIMEOUT_SECONDS
        while self._mismatches(entries):
            self._current = self._store.read_versioned(self._manifest_key)
            if finished := self._finished_elsewhere():
                return finished
            if time.monotonic() > deadline:
                self._check_outputs(entries)
            time.sleep(1)
        return None

    def _finished_elsewhere(self) -> Manifest | None:
        """The current manifest, if it is of the same step with the same inputs, and its outputs are in the store."""
        manifest: Manifest = json.loads(self._current.data) if self._current else {}
        return manifest if manifest.get("key") == self._key and not self._mismatches(manifest["outputs"]) else None

    def _check_outputs(self, entries: Sequence[Entry]) -> None:
        if mismatches := self._mismatches(entries):
            raise PyriteError(
                f"{', '.join(mismatches[:3])} in {self._store}/{self._prefix} changed after it was written, so the "
                f"step is not finished. Another machine probably runs {self._name} of this run: use one at a time."
            )

    def _mismatches(self, entries: Sequence[Entry]) -> list[str]:
        """Keys of ``entries`` whose contents in the store differ."""
        return [
            entry["key"]
            for entry in entries
            if self._store.checksum(f"{self._prefix}/{entry['key']}") != Checksum(entry["bytes"], entry["sha256"])
        ]

    def _conflict(self) -> PyriteError:
        return PyriteError(
            f"cannot write {self._manifest_key} in {self._store}: other processes keep replacing it. "
            "Let one machine at a time work on a run."
        )
