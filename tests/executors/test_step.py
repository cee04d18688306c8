"""Faults of disks, files and inputs end in an error with a fix. Incomplete outputs never look finished."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pyrite import tables
from pyrite.cli import main
from pyrite.config import load
from pyrite.errors import UserError
from pyrite.executors.step import open_run, run_step
from pyrite.locks import holder, locked
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.store import open_store

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


def mount(folder: Path, options: str) -> None:
    """Mount a tmpfs, or skip the test: mounting needs root on Linux."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs root on Linux")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    mount(folder, "size=256k")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "read-only"
    mount(folder, "size=1m,ro")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_user_error(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The exit code is 2, there is no traceback, and the message contains ``parts``."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr.replace("\n", " ")


@pytest.mark.slow
def test_a_full_disk_is_reported_and_with_space_train_resumes(pyrite: Pyrite, run_file: Path, small_disk: Path) -> None:
    command = ("train", run_file, "iterations=1", "--store", small_disk)
    assert_user_error(pyrite(*command), "no space left in the store", str(small_disk))
    assert not (small_disk / "runs/small/steps/evaluate.json").exists()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    after = pyrite(*command)
    assert after.returncode == 0, after.stderr


def test_a_read_only_store_is_reported(pyrite: Pyrite, run_file: Path, read_only_disk: Path) -> None:
    assert_user_error(pyrite("train", run_file, "--store", read_only_disk / "store"), "cannot be written to", "--store")


def test_a_file_with_the_name_of_a_run_is_reported(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "store/runs/small"
    path.parent.mkdir(parents=True)
    path.touch()
    assert_user_error(pyrite("train", run_file), str(path), "the path is in use")


def test_a_read_only_run_folder_is_reported(
    pyrite: Pyrite, run_file: Path, read_only_disk: Path, tmp_path: Path
) -> None:
    path = tmp_path / "store/runs/small"
    path.mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(read_only_disk), str(path)], check=True)
    try:
        for verb in ("train", "prepare"):
            assert_user_error(pyrite(verb, run_file), str(path), "Read-only file system")
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("pages", range(1, 8))
def test_an_almost_full_disk_is_reported(pages: int, pyrite: Pyrite, run_file: Path, small_disk: Path) -> None:
    command = ("train", run_file, "iterations=1", "--store", small_disk)
    assert pyrite("prepare", *command[1:]).returncode == 0
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass
    os.truncate(small_disk / "filler", (small_disk / "filler").stat().st_size - 4096 * pages)
    assert_user_error(pyrite(*command), "no space left")
    temporary = [path for path in small_disk.rglob("*.tmp") if "scratch" not in path.parts]
    assert not temporary


def test_reading_a_lock_needs_no_write_permission(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    mount(folder, "size=1m")
    try:
        with locked(folder / "lock", "the run"):
            pass
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        assert holder(folder / "lock") is None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_fetch_into_a_file_is_reported(pyrite: Pyrite, run_file: Path) -> None:
    assert_user_error(pyrite("fetch", "medquad", run_file), str(run_file), "the path is in use")


def test_a_store_inside_a_file_is_reported(pyrite: Pyrite, run_file: Path) -> None:
    assert_user_error(pyrite("train", run_file, "--store", run_file / "store"), "cannot be written to")


def test_a_folder_without_a_model_is_reported(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_user_error(
        pyrite("train", run_file, f"model.base={tmp_path / 'empty'}"), "is not a model folder", "config.json"
    )
    assert_user_error(pyrite("train", run_file, f"model.base={tmp_path / 'none'}"), "does not exist")
    (tmp_path / "run/model").mkdir(parents=True)
    (tmp_path / "run/model/modules.json").touch()
    advice = f"Set {tmp_path / 'run/model'}"
    assert_user_error(pyrite("train", run_file, f"model.base={tmp_path / 'run'}"), advice)


def test_a_git_lfs_pointer_instead_of_weights_is_reported(
    pyrite: Pyrite, run_file: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pointer"
    shutil.copytree(tiny_model, folder)
    weights = next(folder.rglob("*.safetensors"))
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90\n")
    for verb in (["estimate"], ["train", "--dry-run"]):
        assert_user_error(
            pyrite(*verb, run_file, f"model.base={folder}"), str(weights), "not a safetensors file", "git lfs pull"
        )


def test_unknown_settings_runs_and_files_are_reported(pyrite: Pyrite, run_file: Path) -> None:
    assert_user_error(pyrite("check", run_file, "finetune.batchsize=3"), "Did you mean batch_size?")
    assert_user_error(pyrite("status", "nothing"), "has no run 'nothing'")
    assert_user_error(
        pyrite("train", "missing.yaml"), "missing.yaml cannot be read: No such file or directory", "pyrite init"
    )


@pytest.mark.slow
def test_a_damaged_output_is_found_and_fixed_with_force(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    assert pyrite("prepare", run_file).returncode == 0
    path = tmp_path / "store/runs/small/corpus/passages.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    result = pyrite("embed", run_file, "-i", 0, "--shard", 0)
    assert result.returncode == 1
    assert "does not match its manifest" in result.stderr.replace("\n", " ")
    assert pyrite("prepare", run_file, "--force").returncode == 0
    assert pyrite("embed", run_file, "-i", 0, "--shard", 0).returncode == 0


@pytest.mark.slow
def test_truncated_passages_are_counted(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.jsonl"
    source = next(line for line in run_file.read_text().splitlines() if line.startswith("source"))
    rows = Path(source.partition("path: ")[2].partition(",")[0]).read_text().splitlines()
    first = json.loads(rows[0])
    first["answer"] += " word" * 300
    long.write_text("\n".join([json.dumps(first), *rows[1:]]))
    overrides = (f"source.path={long}", "prepare.max_chars=4000")
    assert pyrite("prepare", run_file, *overrides).returncode == 0
    assert pyrite("embed", run_file, "-i", 0, "--shard", 0, *overrides).returncode == 0
    result = pyrite("validate", run_file, "-i", 0, *overrides)
    assert result.returncode == 0, result.stderr
    assert "truncates 1 of 60 passages" in result.stdout.replace("\n", " ")
    manifest = json.loads((tmp_path / "store/runs/small/steps/validate-0.json").read_text())
    assert manifest["summary"]["truncated_passages"] == 1


def _deny_access(monkeypatch: pytest.MonkeyPatch, denied: Path) -> None:
    """Make opening ``denied``, and all files in it, fail with EACCES. File modes would not stop root."""
    original = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.is_relative_to(denied):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize("setting", ["source", "model"])
def test_an_input_that_cannot_be_opened_is_named(
    setting: str,
    run_file: Path,
    questions: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = {"source": questions, "model": tiny_model}[setting]
    _deny_access(monkeypatch, path)
    monkeypatch.setattr("sys.argv", ["pyrite", "train", str(run_file), "--store", str(tmp_path / "store")])
    with pytest.raises(SystemExit, match="2"):
        main()
    message = capsys.readouterr().err
    assert f"{path}" in message
    assert "cannot be opened (Permission denied)" in message
    assert "store" not in message.replace(str(tmp_path), "")


def test_an_unreadable_input_is_not_reported_as_a_store_error(
    run_file: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(load(run_file), open_store(str(tmp_path / "store")))
    with monkeypatch.context() as patched:
        _deny_access(patched, questions)
        with pytest.raises(UserError, match=f"{questions}: cannot be opened"):
            run_step(run, Step("prepare"), NullProgress())
    _deny_access(monkeypatch, tmp_path / "store/runs/small/scratch")
    with pytest.raises(UserError, match=r"the store .* cannot be written to"):
        run_step(run, Step("prepare"), NullProgress())


def _retention_set(folder: Path, relevant: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "Ships"}\n{"_id": "d2", "text": "Trains"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "What floats?"}\n')
    (folder / "qrels/test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq1\td1\t{relevant}\n")
    return folder


def test_a_retention_set_is_checked_before_the_first_step(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    setting = "evaluate.retention.path"
    assert_user_error(
        pyrite("train", run_file, f"{setting}=none"), f"{tmp_path / 'none'}: no such file", f"Correct {setting}"
    )
    _retention_set(tmp_path / "useless", relevant="0")
    assert_user_error(
        pyrite("train", run_file, f"{setting}=useless"), f"{setting}: no query of", "has a relevant document"
    )
    assert not (tmp_path / "store/runs/small/steps").exists()


@pytest.mark.slow
def test_a_retention_set_can_be_an_archive(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "other"), "xztar", root_dir=_retention_set(tmp_path / "other", "1"))
    path = f"evaluate.retention.path={Path(archive).name}"
    assert pyrite("prepare", run_file, path).returncode == 0
    assert pyrite("embed", run_file, "-i", 0, "--shard", 0, path).returncode == 0
    result = pyrite("validate", run_file, "-i", 0, path)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "store/runs/small/steps/validate-0.json").read_text())
    table = tables.read(tmp_path / "store/runs/small/iterations/0/metrics/retention.parquet", tables.RETENTION)
    (row,) = table.to_pylist()
    assert row["value"] == manifest["summary"]["retention"]["base"] > 0
    assert (row["model"], row["set"], row["query_id"], row["metric"]) == ("base", "other", "q1", "ndcg@10")
