"""Two machines run the same step: one complete result is published."""

from pathlib import Path
from typing import Any

import pytest

from pyrite.errors import PyriteError
from pyrite.executors.publication import Publication, manifests_below
from pyrite.store import Store, checksum_file


class Execution:
    """One execution of the step prepare with the outputs ``contents``, as executors/step.py publishes it."""

    def __init__(self, store: Store, name: str, contents: dict[str, bytes], key: str = "k"):
        self._store, self._name, self._contents, self._key = store, name, contents, key
        self._publication = Publication(store, "runs/r", "prepare", key)
        self._entries: list[dict[str, Any]] = []

    def publish_outputs(self) -> dict[str, Any] | None:
        folder = self._store.scratch(f"runs/r/scratch/{self._name}")
        paths = {}
        for key, data in self._contents.items():
            paths[key] = folder / key
            paths[key].write_bytes(data)
        self._entries = [
            {"key": key, "bytes": checksum.size, "sha256": checksum.sha256}
            for key, checksum in ((key, checksum_file(path)) for key, path in paths.items())
        ]
        return self._publication.publish_outputs(paths, self._entries)

    def publish_manifest(self) -> dict[str, Any]:
        attempt = self._publication.attempt
        return self._publication.publish_manifest(
            {"step": "prepare", "key": self._key, "attempt": attempt, "by": self._name, "outputs": self._entries}
        )


def published(store: Store) -> dict[str, Any]:
    """The step's manifest, after verifying its outputs."""
    manifest = manifests_below(store, "runs/r")["prepare"]
    for entry in manifest["outputs"]:
        assert store.checksum(f"runs/r/{entry['key']}") == (entry["bytes"], entry["sha256"])
    return manifest


def test_a_repeated_step_replaces_all_old_outputs(store: Store) -> None:
    first = Execution(store, "first", {"a": b"1", "b": b"1"}, key="old")
    first.publish_outputs()
    assert first.publish_manifest()["by"] == "first"
    second = Execution(store, "second", {"a": b"2"})
    assert second.publish_outputs() is None
    assert manifests_below(store, "runs/r") == {}, "the step counts as finished while its outputs are replaced"
    second.publish_manifest()
    assert published(store)["by"] == "second"
    assert store.keys("runs/r/steps") == ["runs/r/steps/prepare.json"]
    assert not store.exists("runs/r/b")
    # Killed between outputs and manifest, then repeated.
    Execution(store, "killed", {"a": b"3", "c": b"3"}).publish_outputs()
    last = Execution(store, "last", {"a": b"4"})
    last.publish_outputs()
    last.publish_manifest()
    assert published(store)["by"] == "last"


def test_a_step_finished_elsewhere_is_accepted(store: Store) -> None:
    ours, theirs = Execution(store, "ours", {"a": b"1"}), Execution(store, "theirs", {"a": b"1"})
    assert theirs.publish_outputs() is None
    theirs.publish_manifest()
    accepted = ours.publish_outputs()
    assert accepted is not None
    assert accepted["by"] == "theirs"
    assert published(store)["by"] == "theirs"


@pytest.mark.parametrize("stale_manifest", [False, True])
def test_the_second_of_two_publishers_accepts_the_first(store: Store, stale_manifest: bool) -> None:
    if stale_manifest:
        stale = Execution(store, "stale", {"a": b"0"}, key="old")
        stale.publish_outputs()
        stale.publish_manifest()
    ours, theirs = Execution(store, "ours", {"a": b"1"}), Execution(store, "theirs", {"a": b"1"})
    ours.publish_outputs()
    theirs.publish_outputs()
    assert theirs.publish_manifest()["by"] == "theirs"
    assert ours.publish_manifest()["by"] == "theirs"
    assert published(store)["by"] == "theirs"


def test_a_manifest_without_its_outputs_is_replaced(store: Store) -> None:
    ours, theirs = Execution(store, "ours", {"a": b"1"}), Execution(store, "theirs", {"a": b"2"})
    theirs.publish_outputs()
    ours.publish_outputs()
    theirs.publish_manifest()  # it verified its outputs before ours replaced them
    assert ours.publish_manifest()["by"] == "ours"
    assert published(store)["by"] == "ours"


def test_a_manifest_is_not_written_over_foreign_outputs(store: Store) -> None:
    ours = Execution(store, "ours", {"a": b"1"})
    foreign = Execution(store, "foreign", {"a": b"2"}, key="other settings")
    ours.publish_outputs()
    foreign.publish_outputs()
    foreign.publish_manifest()
    with pytest.raises(PyriteError, match="Another machine"):
        ours.publish_manifest()
    assert published(store)["by"] == "foreign"


def test_replaced_outputs_are_accepted_with_their_manifest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = Execution(store, "ours", {"a": b"1"}), Execution(store, "theirs", {"a": b"2"})
    publish = store.publish

    def publish_then_theirs(local: Path, key: str) -> None:
        publish(local, key)
        monkeypatch.setattr(store, "publish", publish)
        theirs.publish_outputs()
        theirs.publish_manifest()

    monkeypatch.setattr(store, "publish", publish_then_theirs)
    accepted = ours.publish_outputs()
    assert accepted is not None
    assert accepted["by"] == "theirs"


def test_replaced_outputs_without_a_manifest_fail(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Execution(store, "ours", {"a": b"1"})
    publish = store.publish

    def publish_then_replace(local: Path, key: str) -> None:
        publish(local, key)
        store.write(key, b"another's")

    monkeypatch.setattr(store, "publish", publish_then_replace)
    monkeypatch.setattr("pyrite.executors.publication._MANIFEST_TIMEOUT_SECONDS", 0.5)
    with pytest.raises(PyriteError, match=r"a in .* changed after it was written"):
        ours.publish_outputs()
    assert manifests_below(store, "runs/r") == {}
