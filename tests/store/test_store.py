"""What every store does, on a folder and on S3."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyrite.errors import PyriteError, UserError
from pyrite.store import ObjectNotFound, Store, VersionedObject, checksum_file, open_store


def staged(store: Store, data: bytes, name: str = "file") -> Path:
    path = store.scratch("runs/r/scratch/s") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def elsewhere(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """The same store as another machine sees it: with an empty local place, where the store has one of its own."""
    monkeypatch.setenv("PYRITE_CACHE", str(tmp_path / "another-machine"))
    return open_store(url)


def test_files_are_there_whole_or_not_at_all(store: Store) -> None:
    assert not store.exists("a/b")
    assert store.checksum("a/b") is None
    with pytest.raises(ObjectNotFound):
        store.read("a/b")
    with pytest.raises(ObjectNotFound):
        store.fetch("a/b")
    store.write("a/b", b"one")
    store.write("a/b", b"three")
    path = staged(store, b"four")
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


def test_what_is_fetched_is_what_stands_there_now(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = elsewhere(url, monkeypatch, tmp_path)
    for name, data in (("config.json", b"{}"), ("1/weights", bytes(3_000_000)), ("old", b"gone soon")):
        store.publish(staged(store, data), f"m/{name}")
    names = ["m/config.json", "m/1/weights", "m/old"]
    folder = other.fetch_folder("m", names)
    assert (folder / "1/weights").read_bytes() == bytes(3_000_000)
    # Changed and taken away on one machine: the other must see neither its copy of the old, nor what is gone.
    store.write("m/config.json", b"[]")
    store.delete("m/old")
    folder = other.fetch_folder("m", names[:2])
    assert (folder / "config.json").read_bytes() == b"[]"
    assert sorted(p.name for p in folder.iterdir()) == ["1", "config.json"]
    with pytest.raises(ObjectNotFound):
        other.fetch_folder("m", names)


def test_of_many_writers_of_one_key_one_wins_and_each_knows_who(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda i: store.conditional_put("steps/a.json", f"writer {i}".encode(), None), range(8))
        )
    winners = {answer.data for answer in answers if answer}
    assert len(answers) == 8
    assert winners == {store.read("steps/a.json")}
    # Over what stood before: only where it still stands.
    first = store.read_versioned("steps/a.json")
    assert first is not None
    second = store.conditional_put("steps/a.json", b"second", first)
    assert second is not None
    assert second.data == b"second"
    late = store.conditional_put("steps/a.json", b"late", first)
    assert late == second == store.read_versioned("steps/a.json")
    assert store.conditional_put("steps/a.json", b"third", late) == store.read_versioned("steps/a.json") != second
    store.delete("steps/a.json")
    assert (
        store.conditional_put("steps/a.json", b"over what is gone", VersionedObject(b"third", second.version)) is None
    )
    assert not store.exists("steps/a.json")


def test_work_in_progress_that_is_kept_comes_back_on_another_machine(
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
    other = elsewhere(url, monkeypatch, tmp_path)
    other.restore_scratch(prefix)
    back = other.local_path(prefix)
    assert json.loads((back / "checkpoint-100/state.json").read_text()) == {"step": 100}
    assert not (back / "checkpoint-50/model").exists()
    # Half of it lost on this machine: whole again, and what is newer here stays.
    if other.local != store.local:
        (back / "checkpoint-100/model").write_bytes(b"damaged")
    (back / "checkpoint-150").mkdir()
    other.restore_scratch(prefix)
    assert (back / "checkpoint-100/model").read_bytes() == b"100"
    assert (back / "checkpoint-150").is_dir()

    # A part of what was kept is gone: nothing half whole comes back.
    third = elsewhere(url, monkeypatch, tmp_path / "third")
    if third.local != store.local:
        store.delete(next(key for key in store.keys(f"{prefix}.kept") if "list" not in key))
        third.restore_scratch(prefix)
        assert not list(third.scratch(prefix).rglob("*"))

    store.delete_scratch("runs/r/scratch/finetune-1", but="abc")
    assert (folder / "checkpoint-100/model").exists()
    store.delete_scratch("runs/r/scratch/finetune-1", but="other-inputs")
    assert not folder.exists()
    another = elsewhere(url, monkeypatch, tmp_path / "fourth")
    another.restore_scratch(prefix)
    assert not list(another.scratch(prefix).rglob("model"))


def test_a_run_in_a_folder_does_not_wait_for_boto3(tmp_path: Path) -> None:
    code = (
        "import sys, pyrite.cli; from pyrite.store import open_store; open_store(sys.argv[1]).ensure_writable(); "
        "sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], check=False).returncode == 0


@pytest.mark.parametrize(("url", "words"), [("s3://", "s3://bucket/prefix"), ("gs://a/b", "gs:// is not known")])
def test_a_url_that_names_no_store(url: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_store(url)


def test_a_store_on_s3_opens_again_from_its_url() -> None:
    pytest.importorskip("boto3")
    store = open_store("s3://bucket/a/prefix/")
    assert open_store(store.url).url == store.url == str(store) == "s3://bucket/a/prefix"
    assert open_store("s3://bucket").local != store.local
