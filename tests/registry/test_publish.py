"""Publishing in a store: two publishers, and publishers that are killed."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pyrite.errors import PyriteError
from pyrite.progress import NullProgress
from pyrite.registry import channels
from pyrite.registry.catalog import Catalog, version_key
from pyrite.registry.channels import History, Stamp
from pyrite.registry.publish import StagedModel, publish_model
from pyrite.store import Checksum, FolderStore, Store, VersionedObject, open_store
from store.test_store import on_other_machine


class Killed(BaseException):
    """The publisher's process is killed."""


class WatchedStore(FolderStore):
    """A folder that calls ``before`` with the number of the operation before each one."""

    def __init__(self, root: Path, before: Callable[[int], None]):
        super().__init__(root)
        self._before, self._number, self._locked = before, count(), False

    def keys(self, prefix: str) -> list[str]:
        self._before(next(self._number))
        return super().keys(prefix)

    def checksum(self, key: str) -> Checksum | None:
        self._before(next(self._number))
        return super().checksum(key)

    def publish(self, local: Path, key: str) -> None:
        self._before(next(self._number))
        super().publish(local, key)

    def read_versioned(self, key: str) -> VersionedObject | None:
        if not self._locked:
            self._before(next(self._number))
        return super().read_versioned(key)

    def conditional_put(self, key: str, data: bytes, expected: VersionedObject | None) -> VersionedObject | None:
        self._before(next(self._number))
        self._locked = True  # it reads under the folder's lock, so no other publisher can be between
        try:
            return super().conditional_put(key, data, expected)
        finally:
            self._locked = False


def publish(store: Store, weights: str, folder: Path) -> tuple[dict[str, Any], bool]:
    """Publish a model with these weights; ``folder`` is a new one in the store's local folder."""
    (folder / "model").mkdir(parents=True)
    (folder / "model/weights").write_text(weights)
    (folder / "model/config.json").write_text("{}")

    def facts() -> dict[str, Any]:
        (folder / f"centroids-{folder.name}.npy").write_text(folder.name)  # differs, as by rounding
        return {"run": folder.name}

    return publish_model(Catalog(store), "law", StagedModel(folder, f"digest of {weights}"), facts, NullProgress())


def verified(store: Store) -> dict[str, str]:
    """The digest of each version, after verifying its files."""
    versions = Catalog(store).versions("law")
    for number, version in versions.items():
        assert {entry["name"] for entry in version["files"]} >= {"model/weights", "model/config.json"}
        for entry in version["files"]:
            assert store.checksum(version_key("law", number, entry["name"])) == (entry["bytes"], entry["sha256"])
    return {version["version"]: version["digest"] for version in versions.values()}


@pytest.mark.parametrize("other", ["same", "another"], ids=lambda weights: f"{weights} weights")
@pytest.mark.parametrize("killed", [False, True], ids=["paused", "killed"])
def test_a_publisher_may_be_interrupted_at_any_operation(
    killed: bool, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each operation of one publisher, a second one publishes; then the first continues, or was killed."""
    monkeypatch.setattr("os.fsync", lambda _: None)  # hundreds of files; no power failure is simulated
    for interrupted in count():
        root, second = tmp_path / str(interrupted), list[Any]()

        def before(number: int, root: Path = root, at: int = interrupted, second: list[Any] = second) -> None:
            if number == at:
                second.append(publish(FolderStore(root), other, root / "scratch/second"))
                if killed:
                    raise Killed

        with suppress(Killed):
            publish(WatchedStore(root, before), "same", root / "scratch/first")
        if not second:
            break  # the first publisher has no such operation
        store = FolderStore(root)
        found = verified(store)
        assert second[0][0]["version"] in found
        if killed:
            publish(store, "same", root / "scratch/again")
        published = verified(store)
        assert sorted(published.values()) == sorted({"digest of same", f"digest of {other}"})
        assert found.items() <= published.items(), "versions do not change"
    assert interrupted > 10


@pytest.mark.parametrize("models", [1, 6])
def test_publishers_on_several_machines_get_different_versions(
    models: int, store: Store, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stores = [store, *(on_other_machine(url, monkeypatch, tmp_path / str(i)) for i in range(5))]
    folders = [each.scratch(f"scratch/{i}") / str(i) for i, each in enumerate(stores)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(publish, stores, (str(i % models) for i in range(6)), folders))
    assert sum(is_new for _, is_new in results) == models
    assert sorted(verified(store).values()) == [f"digest of {i}" for i in range(models)]
    assert len({version["version"] for version, _ in results}) == models


def test_channels_moved_at_once_keep_all_moves(store: Store, url: str) -> None:
    def move(number: int) -> None:
        Catalog(open_store(url)).move(
            "law", lambda history, stamp: channels.promoted(history, f"channel-{number}", number, stamp)
        )

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(move, range(1, 7)))
    history = Catalog(store).history("law")
    assert channels.current(history) == {f"channel-{number}": number for number in range(1, 7)}
    assert len(history) == 6


def test_a_move_between_reading_and_writing_is_not_lost(tmp_path: Path) -> None:
    catalog = Catalog(FolderStore(tmp_path))

    def overtaken(history: History, stamp: Stamp) -> History:
        if not history:
            catalog.move("law", lambda moves, other: channels.promoted(moves, "staging", 1, other))
        return channels.promoted(history, "production", 2, stamp)

    catalog.move("law", overtaken)
    assert channels.current(catalog.history("law")) == {"production": 2, "staging": 1}


def test_a_move_is_made_once_if_another_follows_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback must not go back two versions because another process writes before it is read back."""
    store = FolderStore(tmp_path)
    catalog = Catalog(store)
    for number in (1, 2, 3):
        catalog.move("law", lambda history, stamp, n=number: channels.promoted(history, "production", n, stamp))
    put = store.conditional_put

    def put_then_overtaken(key: str, data: bytes, expected: Any) -> Any:
        put(key, data, expected)
        monkeypatch.setattr(store, "conditional_put", put)
        Catalog(store).move("law", lambda history, stamp: channels.promoted(history, "staging", 1, stamp))
        return store.read_versioned(key)

    monkeypatch.setattr(store, "conditional_put", put_then_overtaken)
    catalog.move("law", lambda history, stamp: channels.rolled_back(history, "production", stamp))
    assert channels.current(catalog.history("law")) == {"production": 2, "staging": 1}


def test_files_that_change_while_they_are_published_make_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path)
    write = store.publish

    def damage(local: Path, key: str) -> None:
        write(local, key)
        if key.endswith("weights"):
            store.write(key, b"damaged")

    monkeypatch.setattr(store, "publish", damage)
    with pytest.raises(PyriteError, match="weights changed after it was written"):
        publish(store, "same", tmp_path / "scratch/first")
    assert verified(store) == {}
    monkeypatch.setattr(store, "publish", write)
    assert publish(store, "same", tmp_path / "scratch/again")[0]["version"] == "v1"
    assert json.loads(store.read("models/law/v1/version.json"))["run"] == "again"


def test_a_claim_that_another_publisher_overwrites_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store without atomic conditional writes lets two publishers win the same number."""
    store = FolderStore(tmp_path)
    write, overwritten = store.publish, json.dumps({"files": [], "attempt": "another"}).encode()

    def overwrite(local: Path, key: str) -> None:
        write(local, key)
        monkeypatch.setattr(store, "publish", write)
        store.write("models/law/v1/claim.json", overwritten)

    monkeypatch.setattr(store, "publish", overwrite)
    version, is_new = publish(store, "same", tmp_path / "scratch/first")
    assert (version["version"], is_new) == ("v2", True)
    assert verified(store) == {"v2": "digest of same"}
