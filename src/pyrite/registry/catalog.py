"""The published versions and the channels in a store.

    models/<domain>/channels.json                    the history of the channels
    models/<domain>/v3/claim.json                    written first: the files of the model that has this number
    models/<domain>/v3/model/...                     the model folder
    models/<domain>/v3/centroids-<digest>.npy        see ``centroids``
    models/<domain>/v3/version.json                  written last: the version exists

A version never changes.
"""

import json
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pyrite.errors import PyriteError, UserError
from pyrite.registry import channels
from pyrite.registry.channels import History, Stamp
from pyrite.registry.names import is_version, version_name, version_number
from pyrite.store import Checksum, ObjectNotFound, Store, VersionedObject, checksum_file

ROOT = "models"
VERSION = "version.json"
CLAIM = "claim.json"

#: Prefix of the names of a version's model files.
MODEL = "model/"

#: Format of version.json. Increase it when a key is renamed, removed or gets another meaning.
FORMAT = 1

#: Attempts to change the channels of a domain while other processes change them.
_ATTEMPTS = 50

#: The content of a version.json.
Version = dict[str, Any]

_VERSION_KEY = re.compile(rf"{ROOT}/([a-z0-9-]+)/v([1-9]\d*)/(.+)")


class Numbers(NamedTuple):
    """The numbers of a domain's versions: those that exist, and those that have a claim."""

    finished: list[int]
    claimed: list[int]


def now() -> str:
    """The current time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def version_key(domain: str, number: int, name: str) -> str:
    """The key of the file ``name`` of a version."""
    return f"{ROOT}/{domain}/{version_name(number)}/{name}"


class Catalog:
    """Reads the versions in a store, and moves its channels."""

    def __init__(self, store: Store):
        self.store = store

    def domains(self) -> list[str]:
        """The domains that have a version, sorted."""
        return sorted({domain for domain, _, name in self._files(ROOT) if name == VERSION})

    def numbers(self, domain: str) -> Numbers:
        """The numbers of the domain's versions, ascending."""
        files = self._files(f"{ROOT}/{domain}")
        finished = {number for _, number, name in files if name == VERSION}
        claimed = {number for _, number, name in files if name == CLAIM}
        return Numbers(sorted(finished), sorted(claimed))

    def versions(self, domain: str) -> dict[int, Version]:
        """All versions of a domain by number, ascending. Raises UserError if a version.json cannot be read."""
        return {number: self._read(domain, number) for number in self.numbers(domain).finished}

    def find(self, domain: str, digest: str) -> Version | None:
        """The newest version of the model with this ``digest``; None if there is none."""
        newest_first = reversed(self.versions(domain).values())
        return next((version for version in newest_first if version["digest"] == digest), None)

    def published(self, domain: str) -> list[int]:
        """The numbers of the domain's versions, ascending. Raises UserError if it has none."""
        if finished := self.numbers(domain).finished:
            return finished
        known = ", ".join(self.domains())
        advice = f"Its domains: {known}." if known else "It has none yet; `pyrite publish` publishes one."
        raise UserError(f"the store {self.store} has no model of domain {domain!r}. {advice}")

    def version(self, domain: str, reference: str) -> Version:
        """The version that ``reference``, a channel or the name of a version, refers to.

        Raises:
            UserError: the domain has no such version or channel.
        """
        published = self.published(domain)
        known = ", ".join(map(version_name, published))
        if is_version(reference):
            number = version_number(reference)
        else:
            pointing = channels.current(self.history(domain))
            if reference not in pointing:
                raise UserError(
                    f"domain {domain} has no version or channel {reference!r}. Its versions: {known}; "
                    f"its channels: {', '.join(sorted(pointing)) or 'none'}. Use one of these, or create a channel "
                    "with `pyrite promote`."
                )
            number = pointing[reference]
        if number not in published:
            raise UserError(f"domain {domain} has no version {version_name(number)}. Its versions: {known}.")
        return self._read(domain, number)

    def fetch_file(self, version: Version, name: str) -> Path:
        """Local path of a copy of the file ``name`` of a version. Raises PyriteError if it is missing or damaged."""
        entry = next((entry for entry in version["files"] if entry["name"] == name), None)
        key = version_key(version["domain"], version_number(version["version"]), name)
        try:
            path = self.store.fetch(key)
        except ObjectNotFound:
            raise self._damaged(key, "is missing") from None
        if entry is None or checksum_file(path) != Checksum(entry["bytes"], entry["sha256"]):
            raise self._damaged(key, "does not match its version.json (size or sha256 differs)")
        return path

    def history(self, domain: str) -> History:
        """The moves of the domain's channels, oldest first. Raises UserError if channels.json is damaged."""
        return self._parse(domain, self.store.read_versioned(self._channels_key(domain)))

    def move(self, domain: str, change: Callable[[History, Stamp], History]) -> History:
        """Apply ``change`` to the history of the domain's channels, and return the result.

        If another process changes them at the same time, ``change`` is applied again to its result, unless that
        already contains this move.

        Raises:
            UserError: ``change`` raises it, or channels.json is damaged.
            PyriteError: other processes keep changing the channels.
        """
        key, stamp = self._channels_key(domain), Stamp(now(), uuid.uuid4().hex)
        current = self.store.read_versioned(key)
        for _ in range(_ATTEMPTS):
            before = self._parse(domain, current)
            if any(move.stamp == stamp for move in before):
                return before
            after = change(before, stamp)
            if after == before:
                return after
            data = channels.dump(after)
            current = self.store.conditional_put(key, data, current)
            if current and current.data == data:
                return after
        raise PyriteError(f"cannot write {key} in {self.store}: other processes keep changing it. Try again.")

    def _damaged(self, key: str, problem: str) -> PyriteError:
        return PyriteError(
            f"{self.store}/{key} {problem}. Restore it from a backup or the model of its run, or use another version."
        )

    def _channels_key(self, domain: str) -> str:
        return f"{ROOT}/{domain}/channels.json"

    def _parse(self, domain: str, found: VersionedObject | None) -> History:
        try:
            return channels.parse(found.data) if found else []
        except ValueError as error:
            key = self._channels_key(domain)
            raise UserError(
                f"{self.store}/{key} is damaged: {error}. Restore it, or delete it and promote again."
            ) from None

    def _read(self, domain: str, number: int) -> Version:
        key = version_key(domain, number, VERSION)
        try:
            version: Version = json.loads(self.store.read(key))
        except ValueError as error:
            raise UserError(f"{self.store}/{key} is not valid JSON ({error}). Restore it from a backup.") from None
        found = version.get("format") if isinstance(version, dict) else None
        if found != FORMAT:
            raise UserError(
                f"{self.store}/{key} has format {found}, but this Pyrite reads format {FORMAT}. Use the Pyrite that "
                "published it, or a newer one."
            )
        return version

    def _files(self, prefix: str) -> list[tuple[str, int, str]]:
        """Domain, number and name of the files of all versions below ``prefix``."""
        matches = (_VERSION_KEY.fullmatch(key) for key in self.store.keys(prefix))
        return [(match[1], int(match[2]), match[3]) for match in matches if match]
