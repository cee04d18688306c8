"""A step's outputs appear in the store, and last the manifest, which makes the step finished.

Locks keep two processes of one machine from doing a step at once; nothing keeps two machines from it. So work may be
done twice, and its result is published once: a manifest is put only over what stood there when it was looked at, and
another's that says the same step is finished, and whose outputs stand, is taken as it is.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyrite.errors import PyriteError, UserError
from pyrite.store import Checksum, Store

#: Times that somebody else's manifest may come between before this process gives up.
_ROUNDS = 5

#: How long another process may take from its last output to its manifest.
_WAIT_SECONDS = 60.0

Manifest = dict[str, Any]
Entry = Mapping[str, Any]


def manifests_below(store: Store, prefix: str) -> dict[str, Manifest]:
    """The manifests of a run's finished steps, by step name.

    Raises:
        UserError: one of them is damaged.
    """
    found = {}
    for key in store.keys(f"{prefix}/steps"):
        try:
            manifest = json.loads(store.read(key))
        except ValueError as error:
            raise UserError(f"{store}: {key} is no JSON ({error}); delete it, and its step is done again.") from None
        if not _is_void(manifest):
            found[manifest["step"]] = manifest
    return found


class Publication:
    """The publishing of one doing of the step ``name``; ``key`` is the step's key.

    ``attempt`` names this doing, and is to stand in its manifest.
    """

    def __init__(self, store: Store, prefix: str, name: str, key: str):
        self._store, self._prefix, self._name, self._key = store, prefix, name, key
        self._place = f"{prefix}/steps/{name}.json"
        self._at_start = store.read_versioned(self._place)
        self._current = self._at_start
        self.attempt = uuid.uuid4().hex

    def outputs(self, paths: Mapping[str, Path], entries: Sequence[Entry]) -> Manifest | None:
        """Move the files ``paths`` to their keys; ``entries`` are what the manifest will say of them.

        The manifest that stands is made void first, so that nobody takes new outputs for old ones.

        Returns:
            The manifest of another process that has finished this very step meanwhile; nothing was moved then.

        Raises:
            PyriteError: what stands in the store then is not what was written.
        """
        self._current = self._store.read_versioned(self._place)
        older: Sequence[Entry] = ()
        void = {"step": self._name, "void": self.attempt}
        for _ in range(_ROUNDS):
            if self._current != self._at_start and (theirs := self._theirs()):
                return theirs
            if self._current is None:
                break
            stands = json.loads(self._current.data)
            older = stands["outputs"]
            if _is_void(stands):
                break
            data = json.dumps({**void, "outputs": older}).encode()
            self._current = self._store.conditional_put(self._place, data, self._current)
        else:
            raise self._meddled()
        for entry in older:
            if entry["key"] not in paths:
                self._store.delete(f"{self._prefix}/{entry['key']}")
        for key, path in paths.items():
            self._store.publish(path, f"{self._prefix}/{key}")
        return self._settled(entries)

    def finish(self, manifest: Manifest) -> Manifest:
        """Put the manifest, and return the one that stands: this one, or another's for the very same step.

        Raises:
            PyriteError: the outputs that stand are not this doing's, nor those of the manifest that stands.
        """
        data = json.dumps(manifest, indent=1).encode()
        for _ in range(_ROUNDS):
            self._current = self._store.conditional_put(self._place, data, self._current)
            if self._current and self._current.data == data:
                return manifest
            if theirs := self._theirs():
                return theirs
            self._check(manifest["outputs"])
        raise self._meddled()

    def _settled(self, entries: Sequence[Entry]) -> Manifest | None:
        """Outputs that are not ours are another's who does the same step: who put them last is about to finish it."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while self._differing(entries):
            self._current = self._store.read_versioned(self._place)
            if theirs := self._theirs():
                return theirs
            if time.monotonic() > deadline:
                self._check(entries)
            time.sleep(1)
        return None

    def _theirs(self) -> Manifest | None:
        manifest: Manifest = json.loads(self._current.data) if self._current else {}
        return manifest if manifest.get("key") == self._key and not self._differing(manifest["outputs"]) else None

    def _check(self, entries: Sequence[Entry]) -> None:
        if differing := self._differing(entries):
            raise PyriteError(
                f"{', '.join(differing[:3])} in {self._store}/{self._prefix} is not there as it was written, so the "
                f"step is not finished: is another machine doing {self._name} of this run?"
            )

    def _differing(self, entries: Sequence[Entry]) -> list[str]:
        """Keys of ``entries`` whose contents in the store are not what is said of them."""
        return [
            entry["key"]
            for entry in entries
            if self._store.checksum(f"{self._prefix}/{entry['key']}") != Checksum(entry["bytes"], entry["sha256"])
        ]

    def _meddled(self) -> PyriteError:
        return PyriteError(f"others keep replacing {self._place} in {self._store}: let one machine at a time do a run.")


def _is_void(manifest: Mapping[str, Any]) -> bool:
    return "void" in manifest
