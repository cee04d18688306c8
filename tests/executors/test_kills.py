"""Kill -9 at any moment, start again: the final tables and metrics are those of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = 20


def outputs(store: Path) -> dict[str, str]:
    """Digest of every table, and of the model's weights, by key, from the manifests."""
    found = {}
    for path in sorted((store / "runs/small/steps").glob("*.json")):
        for entry in json.loads(path.read_text())["outputs"]:
            if entry["key"].endswith((".parquet", ".safetensors")):
                found[entry["key"]] = entry["sha256"]
    return found


def start(run_file: Path, store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pyrite", "train", str(run_file), "finetune.checkpoint_every=1"],
        env={**os.environ, "PYRITE_STORE": str(store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def members(group: int) -> list[int]:
    """Processes of a process group that are alive."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(after_name[2]) == group and after_name[0] not in "ZX":
            alive.append(int(stat.parent.name))
    return alive


def started(process: subprocess.Popen[str]) -> list[int]:
    """The processes of a run beside its parent, once there are any, or none where it ends before."""
    while process.poll() is None:
        if children := [member for member in members(process.pid) if member != process.pid]:
            return children
        time.sleep(0.01)
    return []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a run's processes in /proc (Linux)")
def test_killed_at_20_random_moments_a_run_ends_as_if_undisturbed(run_file: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    began = time.monotonic()
    process = start(run_file, undisturbed)
    assert process.wait(timeout=600) == 0, process.communicate()[0]
    length = time.monotonic() - began

    rng = random.Random(0)
    hits: list[str] = []
    while len(hits) < KILLS:
        process = start(run_file, killed)
        # A third of a run, so that 20 kills fall on all of its steps and each attempt gets somewhere.
        time.sleep(rng.uniform(0.5, length / 3))
        # The parent alone, or one of its processes: a step that dies alone must end the run with a message.
        children = started(process) if len(hits) % 2 else []
        victim = rng.choice(children or [process.pid])
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[0]
            done = sorted((killed / "runs/small/steps").glob("*.json"))
            # Finished before all kills were spent: take a step back, at random, and go on killing.
            rng.choice(done).unlink()
            continue
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:  # a child that ended by itself just now; its parent waits to be reaped here
            victim = process.pid
            os.kill(victim, signal.SIGKILL)
        hits.append("parent" if victim == process.pid else "child")
        process.communicate(timeout=120)
        assert process.returncode != 0 or victim != process.pid
        deadline = time.monotonic() + 30
        while members(process.pid):
            assert time.monotonic() < deadline, "a process outlived its run"
            time.sleep(0.05)
    assert hits.count("parent") > 3
    assert hits.count("child") > 3

    last = start(run_file, killed)
    assert last.wait(timeout=600) == 0, last.communicate()[0]
    assert outputs(killed) == outputs(undisturbed)
    first, second = (json.loads((s / "runs/small/report/report.json").read_text()) for s in (undisturbed, killed))
    assert first["per_query"] == second["per_query"]
    assert not list((killed / "runs/small").rglob("part-*.parquet"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a run's processes in /proc (Linux)")
def test_training_goes_on_from_its_checkpoint_and_ends_with_the_same_weights(run_file: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    longer = run_file.read_text().replace("finetune: {", "finetune: {epochs: 8, ")
    run_file.write_text(longer)
    assert start(run_file, undisturbed).wait(timeout=600) == 0

    process = start(run_file, killed)
    deadline = time.monotonic() + 120
    pattern = "runs/small/scratch/finetune-1/*/checkpoints/checkpoint-[1-9]*/trainer_state.json"
    while not list(killed.glob(pattern)):
        assert time.monotonic() < deadline, "no checkpoint was ever written"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (killed / "runs/small/steps/finetune-1.json").exists()

    again = start(run_file, killed)
    said, _ = again.communicate(timeout=600)
    assert again.returncode == 0, said
    assert "resuming from checkpoint-" in said
    assert outputs(killed) == outputs(undisturbed)
