"""The behaviour of every store, on a folder and on S3."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyrite.errors import PyriteError, UserError
from pyrite.store import ObjectNotFound, Store, VersionedObject, checksum_file, open_store


def write_scratch(store: Store, data: bytes) -> Path:
    path = store.scratch("runs/r/scratch/s") / "file"
    path.write_bytes(data)
    return path


def on_other_machine(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """The same store, opened with an empty cache as on another machine."""
    monkeypatch.setenv("PYRITE_CACHE", str(tmp_path / "another-machine"))
    return open_store(url)


def test_files_are_written_read_listed_and_deleted(store: Store) -> None:
    assert not store.exists("a/b")
    assert store.checksum("a/b") is None
    with pytest.raises(ObjectNotFound):
        store.read("a/b")
    with pytest.raises(ObjectNotFound):
        store.fetch("a/b")
    store.write("a/b", b"one")
    store.write("a/b", b"three")
    path = write_scratch(store, b"four")
    checksum = checksum_file(path)
    store.publish(path, "a/c/d")
    assert not path.exists()
    assert store.checksum("a/c/d") == checksum
    assert store.keys("a") == ["a/b", "a/c/d"]
    assert store.keys("a/c") == ["a/c/d"]
    assert store.read("a/b") == b"three"
    store.delete("a/b")
    store.delete("a/b")
    assert store.keys("a") == ["a/c/d"]
    with pytest.raises(PyriteError):
        store.fetch("../outside")


def test_fetch_returns_the_current_contents(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = on_other_machine(url, monkeypatch, tmp_path)
    for name, data in (("config.json", b"{}"), ("1/weights", bytes(3_000_000)), ("old", b"deleted below")):
        store.publish(write_scratch(store, data), f"m/{name}")
    names = ["m/config.json", "m/1/weights", "m/old"]
    folder = other.fetch_folder("m", names)
    assert (folder / "1/weights").read_bytes() == bytes(3_000_000)
    # After a change and a deletion, the other machine must not use its cached copies.
    store.write("m/config.json", b"[]")
    store.delete("m/old")
    folder = other.fetch_folder("m", names[:2])
    assert (folder / "config.json").read_bytes() == b"[]"
    assert sorted(p.name for p in folder.iterdir()) == ["1", "config.json"]
    with pytest.raises(ObjectNotFound):
        other.fetch_folder("m", names)


def test_one_of_many_conditional_puts_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(
            pool.map(lambda i: store.conditional_put("steps/a.json", f"writer {i}".encode(), None), range(8))
        )
    winners = {result.data for result in results if result}
    assert len(results) == 8
    assert winners == {store.read("steps/a.json")}
    first = store.read_versioned("steps/a.json")
    assert first is not None
    second = store.conditional_put("steps/a.json", b"second", first)
    assert second is not None
    assert second.data == b"second"
    late = store.conditional_put("steps/a.json", b"late", first)
    assert late == second == store.read_versioned("steps/a.json")
    assert store.conditional_put("steps/a.json", b"third", late) == store.read_versioned("steps/a.json") != second
    store.delete("steps/a.json")
    assert store.conditional_put("steps/a.json", b"fourth", VersionedObject(b"third", second.version)) is None
    assert not store.exists("steps/a.json")


def test_saved_scratch_is_restored_on_another_machine(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prefix = "runs/r/scratch/finetune-1/abc/checkpoints"
    store.restore_scratch(prefix)
    folder = store.scratch(prefix)
    for step in (50, 100):
        for path in folder.glob("*/*"):
            path.unlink()
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}/model").write_bytes(b"%d" % step)
        (folder / f"checkpoint-{step}/state.json").write_text(json.dumps({"step": step}))
        store.save_scratch(prefix)
    other = on_other_machine(url, monkeypatch, tmp_path)
    other.restore_scratch(prefix)
    restored = other.local_path(prefix)
    assert json.loads((restored / "checkpoint-100/state.json").read_text()) == {"step": 100}
    assert not (restored / "checkpoint-50/model").exists()
    # A damaged local file is restored, and a newer local checkpoint stays.
    if other.local != store.local:
        (restored / "checkpoint-100/model").write_bytes(b"damaged")
    (restored / "checkpoint-150").mkdir()
    other.restore_scratch(prefix)
    assert (restored / "checkpoint-100/model").read_bytes() == b"100"
    assert (restored / "checkpoint-150").is_dir()

    # If a saved file is missing, no part of its checkpoint is restored.
    third = on_other_machine(url, monkeypatch, tmp_path / "third")
    if third.local != store.local:
        store.delete(next(key for key in store.keys(f"{prefix}.saved") if "index" not in key))
        third.restore_scratch(prefix)
        assert not list(third.scratch(prefix).rglob("*"))

    store.delete_scratch("runs/r/scratch/finetune-1", exclude="abc")
    assert (folder / "checkpoint-100/model").exists()
    store.delete_scratch("runs/r/scratch/finetune-1", exclude="other-inputs")
    assert not folder.exists()
    fourth = on_other_machine(url, monkeypatch, tmp_path / "fourth")
    fourth.restore_scratch(prefix)
    assert not list(fourth.scratch(prefix).rglob("model"))


def test_a_folder_store_does_not_import_boto3(tmp_path: Path) -> None:
    code = (
        "import sys, pyrite.cli; from pyrite.store import open_store; open_store(sys.argv[1]).ensure_writable(); "
        "sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], check=False).returncode == 0


@pytest.mark.parametrize(("url", "message"), [("s3://", "s3://bucket/prefix"), ("gs://a/b", "gs:// is not supported")])
def test_an_invalid_store_url_is_rejected(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_store(url)


def test_an_s3_store_reopens_from_its_url() -> None:
    pytest.importorskip("boto3")
    store = open_store("s3://bucket/a/prefix/")
    assert open_store(store.url).url == store.url == str(store) == "s3://bucket/a/prefix"
    assert open_store("s3://bucket").local != store.local
