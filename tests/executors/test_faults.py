"""Faults at the front door: each ends in a sentence that says what to do, and nothing half-written looks finished."""

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
    """Mount a tmpfs, or skip: it takes root on Linux."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs takes root on Linux")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    mount(folder, "size=256k")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def frozen_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "frozen"
    mount(folder, "size=1m,ro")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The user's mistake: exit code 2, no traceback, and the message has ``parts``."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr.replace("\n", " ")


@pytest.mark.slow
def test_a_full_disk_is_named_and_with_room_the_same_command_goes_on(
    pyrite: Pyrite, run_file: Path, small_disk: Path
) -> None:
    words = ("train", run_file, "iterations=1", "--store", small_disk)
    refused(pyrite(*words), "no space left in the store", str(small_disk))
    assert not (small_disk / "runs/small/steps/evaluate.json").exists()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    after = pyrite(*words)
    assert after.returncode == 0, after.stderr


def test_a_store_that_cannot_be_written_to(pyrite: Pyrite, run_file: Path, frozen_disk: Path) -> None:
    refused(pyrite("train", run_file, "--store", frozen_disk / "store"), "cannot be written to", "--store")


def test_a_file_in_the_place_of_a_run(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    place = tmp_path / "store/runs/small"
    place.parent.mkdir(parents=True)
    place.touch()
    refused(pyrite("train", run_file), str(place), "something else stands there")


def test_a_run_whose_folder_cannot_be_written_to(
    pyrite: Pyrite, run_file: Path, frozen_disk: Path, tmp_path: Path
) -> None:
    place = tmp_path / "store/runs/small"
    place.mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(frozen_disk), str(place)], check=True)
    try:
        for verb in ("train", "prepare"):
            refused(pyrite(verb, run_file), str(place), "Read-only file system")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("pages", range(1, 8))
def test_with_next_to_nothing_left_the_disk_is_named_still(
    pages: int, pyrite: Pyrite, run_file: Path, small_disk: Path
) -> None:
    words = ("train", run_file, "iterations=1", "--store", small_disk)
    assert pyrite("prepare", *words[1:]).returncode == 0
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass
    os.truncate(small_disk / "filler", (small_disk / "filler").stat().st_size - 4096 * pages)
    refused(pyrite(*words), "no space left")
    left = [path for path in small_disk.rglob("*.tmp") if "scratch" not in path.parts]
    assert not left


def test_who_only_looks_need_not_be_allowed_to_write(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    mount(folder, "size=1m")
    try:
        with locked(folder / "lock", "it"):
            pass
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        assert holder(folder / "lock") is None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_download_to_a_place_that_is_a_file(pyrite: Pyrite, run_file: Path) -> None:
    refused(pyrite("fetch", "medquad", run_file), str(run_file), "something else stands there")


def test_a_store_below_a_file(pyrite: Pyrite, run_file: Path) -> None:
    refused(pyrite("train", run_file, "--store", run_file / "store"), "cannot be written to")


def test_a_model_folder_that_is_not_one(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(pyrite("train", run_file, f"model.base={tmp_path / 'empty'}"), "is not a model folder", "config.json")
    refused(pyrite("train", run_file, f"model.base={tmp_path / 'none'}"), "does not exist")


def test_weights_that_git_lfs_did_not_bring(pyrite: Pyrite, run_file: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pointer"
    shutil.copytree(tiny_model, folder)
    weights = next(folder.rglob("*.safetensors"))
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90\n")
    for verb in (["estimate"], ["train", "--dry-run"]):
        refused(pyrite(*verb, run_file, f"model.base={folder}"), str(weights), "not a safetensors file", "git lfs pull")


def test_an_unknown_setting_and_an_unknown_run(pyrite: Pyrite, run_file: Path) -> None:
    refused(pyrite("validate", run_file, "finetune.batchsize=3"), "Did you mean batch_size?")
    refused(pyrite("status", "nothing"), "has no run 'nothing'")
    refused(pyrite("train", "missing.yaml"), "missing.yaml does not exist", "pyrite init")


@pytest.mark.slow
def test_a_changed_artifact_is_found_by_who_reads_it_and_force_mends_it(
    pyrite: Pyrite, run_file: Path, tmp_path: Path
) -> None:
    assert pyrite("prepare", run_file).returncode == 0
    path = tmp_path / "store/runs/small/corpus/passages.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    result = pyrite("evaluate", run_file, "-i", 0)
    assert result.returncode == 1
    assert "is not what its manifest says" in result.stderr.replace("\n", " ")
    assert pyrite("prepare", run_file, "--force").returncode == 0
    assert pyrite("evaluate", run_file, "-i", 0).returncode == 0


@pytest.mark.slow
def test_passages_cut_at_the_models_window_are_counted(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.jsonl"
    source = next(line for line in run_file.read_text().splitlines() if line.startswith("source"))
    rows = Path(source.partition("path: ")[2].partition(",")[0]).read_text().splitlines()
    first = json.loads(rows[0])
    first["answer"] += " word" * 300
    long.write_text("\n".join([json.dumps(first), *rows[1:]]))
    overrides = (f"source.path={long}", "prepare.max_chars=4000")
    assert pyrite("prepare", run_file, *overrides).returncode == 0
    result = pyrite("evaluate", run_file, "-i", 0, *overrides)
    assert result.returncode == 0, result.stderr
    assert "truncates 1 of 60 passages to 128 tokens" in result.stdout.replace("\n", " ")
    manifest = json.loads((tmp_path / "store/runs/small/steps/validate-0.json").read_text())
    assert manifest["summary"]["truncated_passages"] == 1


def _out_of_bounds(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """What lies at or below ``place`` cannot be opened, as for a user without the right to (root has it always)."""
    opened = Path.open

    def refuse(path: Path, *words: Any, **more: Any) -> Any:
        if path.is_relative_to(place):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *words, **more)

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize("what", ["source", "model"])
def test_what_cannot_be_opened_is_named(
    what: str,
    run_file: Path,
    questions: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = {"source": questions, "model": tiny_model}[what]
    _out_of_bounds(monkeypatch, place)
    monkeypatch.setattr("sys.argv", ["pyrite", "train", str(run_file), "--store", str(tmp_path / "store")])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert f"{place}" in said
    assert "cannot be opened (Permission denied)" in said
    assert "store" not in said.replace(str(tmp_path), "")


def test_a_step_that_meets_an_unreadable_file_blames_the_file_and_not_the_store(
    run_file: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(load(run_file), open_store(str(tmp_path / "store")))
    with monkeypatch.context() as patched:
        _out_of_bounds(patched, questions)
        with pytest.raises(UserError, match=f"{questions}: cannot be opened"):
            run_step(run, Step("prepare"), NullProgress())
    _out_of_bounds(monkeypatch, tmp_path / "store/runs/small/scratch")
    with pytest.raises(UserError, match=r"the store .* cannot be written to"):
        run_step(run, Step("prepare"), NullProgress())


def _elsewhere(folder: Path, relevant: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "Ships"}\n{"_id": "d2", "text": "Trains"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "What floats?"}\n')
    (folder / "qrels/test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq1\td1\t{relevant}\n")
    return folder


def test_a_retention_set_is_looked_at_before_the_first_step(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    setting = "evaluate.retention.path"
    refused(pyrite("train", run_file, f"{setting}=none"), f"{tmp_path / 'none'}: no such file", f"Correct {setting}")
    _elsewhere(tmp_path / "useless", relevant="0")
    refused(pyrite("train", run_file, f"{setting}=useless"), f"{setting}: no query of", "has a relevant document")
    assert not (tmp_path / "store/runs/small/steps").exists()


@pytest.mark.slow
def test_a_retention_set_may_be_an_archive(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "other"), "xztar", root_dir=_elsewhere(tmp_path / "other", "1"))
    path = f"evaluate.retention.path={Path(archive).name}"
    assert pyrite("prepare", run_file, path).returncode == 0
    result = pyrite("evaluate", run_file, "-i", 0, path)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "store/runs/small/steps/validate-0.json").read_text())
    assert manifest["summary"]["retention"]["base"] > 0
