"""Faults at the front door: each ends in a sentence that says what to do, and nothing half-written looks finished."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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


def test_a_store_below_a_file(pyrite: Pyrite, run_file: Path) -> None:
    refused(pyrite("train", run_file, "--store", run_file / "store"), "cannot be written to")


def test_a_model_folder_that_is_not_one(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(pyrite("train", run_file, f"model.base={tmp_path / 'empty'}"), "is not a model folder", "config.json")
    refused(pyrite("train", run_file, f"model.base={tmp_path / 'none'}"), "does not exist")


def test_an_unknown_setting_and_an_unknown_run(pyrite: Pyrite, run_file: Path) -> None:
    refused(pyrite("validate", run_file, "finetune.batchsize=3"), "Did you mean batch_size?")
    refused(pyrite("status", "nothing"), "has no run 'nothing'")
    refused(pyrite("train", "missing.yaml"), "missing.yaml does not exist", "pyrite init")


def test_a_changed_artifact_is_found_by_who_reads_it_and_force_mends_it(
    pyrite: Pyrite, run_file: Path, tmp_path: Path
) -> None:
    for words in (["prepare"], ["evaluate", "-i", 0], ["retrieve", "-i", 1]):
        assert pyrite(words[0], run_file, *words[1:]).returncode == 0
    path = tmp_path / "store/runs/small/iterations/1/candidates.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    result = pyrite("judge", run_file, "-i", 1, "--shard", 0)
    assert result.returncode == 1
    assert "is not what its manifest says" in result.stderr.replace("\n", " ")
    assert pyrite("retrieve", run_file, "-i", 1, "--force").returncode == 0
    assert pyrite("judge", run_file, "-i", 1, "--shard", 0).returncode == 0


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
    assert "1 of 60 passages is longer than the model's window of 128 tokens" in result.stdout.replace("\n", " ")
    manifest = json.loads((tmp_path / "store/runs/small/steps/validate-0.json").read_text())
    assert manifest["summary"]["cut_passages"] == 1
