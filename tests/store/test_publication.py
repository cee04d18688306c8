"""Two machines do the same step: one result is published, and it is whole."""

from pathlib import Path
from typing import Any

import pytest

from pyrite.errors import PyriteError
from pyrite.executors.publication import Publication, manifests_below
from pyrite.store import Store, checksum_file


class Doing:
    """One doing of the step prepare with the outputs ``contents``, as executors/step.py does it, in two halves."""

    def __init__(self, store: Store, name: str, contents: dict[str, bytes], key: str = "k"):
        self._store, self._name, self._contents, self._key = store, name, contents, key
        self._publication = Publication(store, "runs/r", "prepare", key)
        self._entries: list[dict[str, Any]] = []

    def outputs(self) -> dict[str, Any] | None:
        folder = self._store.scratch(f"runs/r/scratch/{self._name}")
        paths = {}
        for key, data in self._contents.items():
            paths[key] = folder / key
            paths[key].write_bytes(data)
        self._entries = [
            {"key": key, "bytes": checksum.size, "sha256": checksum.sha256}
            for key, checksum in ((key, checksum_file(path)) for key, path in paths.items())
        ]
        return self._publication.outputs(paths, self._entries)

    def finish(self) -> dict[str, Any]:
        attempt = self._publication.attempt
        return self._publication.finish(
            {"step": "prepare", "key": self._key, "attempt": attempt, "by": self._name, "outputs": self._entries}
        )


def stands(store: Store) -> dict[str, Any]:
    """The manifest of the step, its outputs checked."""
    manifest = manifests_below(store, "runs/r")["prepare"]
    for entry in manifest["outputs"]:
        assert store.checksum(f"runs/r/{entry['key']}") == (entry["bytes"], entry["sha256"])
    return manifest


def test_done_again_with_other_outputs_nothing_of_the_old_is_left(store: Store) -> None:
    first = Doing(store, "first", {"a": b"1", "b": b"1"}, key="old")
    first.outputs()
    assert first.finish()["by"] == "first"
    second = Doing(store, "second", {"a": b"2"})
    assert second.outputs() is None
    assert manifests_below(store, "runs/r") == {}, "while outputs are replaced the step is not finished"
    second.finish()
    assert stands(store)["by"] == "second"
    assert store.keys("runs/r/steps") == ["runs/r/steps/prepare.json"]
    assert not store.exists("runs/r/b")
    # And killed between outputs and manifest, it is done a third time.
    Doing(store, "killed", {"a": b"3", "c": b"3"}).outputs()
    last = Doing(store, "last", {"a": b"4"})
    last.outputs()
    last.finish()
    assert stands(store)["by"] == "last"


def test_the_step_was_finished_elsewhere_meanwhile(store: Store) -> None:
    ours, theirs = Doing(store, "ours", {"a": b"1"}), Doing(store, "theirs", {"a": b"1"})
    assert theirs.outputs() is None
    theirs.finish()
    taken = ours.outputs()
    assert taken is not None
    assert taken["by"] == "theirs"
    assert stands(store)["by"] == "theirs"


@pytest.mark.parametrize("older", [False, True])
def test_both_publish_and_the_later_takes_the_manifest_that_stands(store: Store, older: bool) -> None:
    if older:
        stale = Doing(store, "stale", {"a": b"0"}, key="old")
        stale.outputs()
        stale.finish()
    ours, theirs = Doing(store, "ours", {"a": b"1"}), Doing(store, "theirs", {"a": b"1"})
    ours.outputs()
    theirs.outputs()
    assert theirs.finish()["by"] == "theirs"
    assert ours.finish()["by"] == "theirs"
    assert stands(store)["by"] == "theirs"


def test_a_manifest_whose_outputs_were_replaced_by_ours_is_replaced_too(store: Store) -> None:
    ours, theirs = Doing(store, "ours", {"a": b"1"}), Doing(store, "theirs", {"a": b"2"})
    theirs.outputs()
    ours.outputs()
    theirs.finish()  # its check was before our outputs came
    assert ours.finish()["by"] == "ours"
    assert stands(store)["by"] == "ours"


def test_a_manifest_is_never_put_over_outputs_that_are_not_its_own(store: Store) -> None:
    ours, stranger = Doing(store, "ours", {"a": b"1"}), Doing(store, "stranger", {"a": b"2"}, key="other settings")
    ours.outputs()
    stranger.outputs()
    stranger.finish()
    with pytest.raises(PyriteError, match="another machine"):
        ours.finish()
    assert stands(store)["by"] == "stranger"


def test_outputs_that_another_has_replaced_are_taken_when_it_finishes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = Doing(store, "ours", {"a": b"1"}), Doing(store, "theirs", {"a": b"2"})
    publish = store.publish

    def then_theirs(local: Path, key: str) -> None:
        publish(local, key)
        monkeypatch.setattr(store, "publish", publish)
        theirs.outputs()
        theirs.finish()

    monkeypatch.setattr(store, "publish", then_theirs)
    taken = ours.outputs()
    assert taken is not None
    assert taken["by"] == "theirs"


def test_outputs_that_others_replaced_before_the_check_are_not_called_finished(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Doing(store, "ours", {"a": b"1"})
    publish = store.publish

    def then_replaced(local: Path, key: str) -> None:
        publish(local, key)
        store.write(key, b"another's")

    monkeypatch.setattr(store, "publish", then_replaced)
    monkeypatch.setattr("pyrite.executors.publication._WAIT_SECONDS", 0.5)
    with pytest.raises(PyriteError, match=r"a in .* is not there as it was written"):
        ours.outputs()
    assert manifests_below(store, "runs/r") == {}
