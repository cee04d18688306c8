"""A run that is killed at random times and restarted ends with the tables and metrics of an undisturbed run."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyrite.config import load
from pyrite.executors.child import run_child
from pyrite.executors.step import open_run
from pyrite.plan import Step
from pyrite.store import open_store

KILLS = 20


def test_a_killed_run_leaves_no_broken_pipe_in_a_log(run_file: Path, tmp_path: Path) -> None:
    """Regression: `pyrite status` showed a BrokenPipeError as the last line of the step's log."""
    run = open_run(load(run_file), open_store(str(tmp_path / "store")))
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    arguments = (run.spec.model_dump_json(by_alias=True), run.store.url, dict(run.external))
    process = multiprocessing.get_context("spawn").Process(
        target=run_child, args=(*arguments, ("prepare", None, None), sender, False)
    )
    process.start()
    sender.close()
    receiver.close()
    process.join(120)
    assert process.exitcode == 1
    log = run.log(Step("prepare"))
    assert log.exists()
    assert not log.read_text()


def outputs(store: Path) -> dict[str, str]:
    """Digest of every table and of the model's weights, by key, from the manifests."""
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


def group_members(group: int) -> list[int]:
    """The live processes of a process group."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(after_name[2]) == group and after_name[0] not in "ZX":
            alive.append(int(stat.parent.name))
    return alive


def await_children(process: subprocess.Popen[str]) -> list[int]:
    """Wait for child processes of the run and return them; returns none if the run ends first."""
    while process.poll() is None:
        if children := [member for member in group_members(process.pid) if member != process.pid]:
            return children
        time.sleep(0.01)
    return []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc (Linux)")
def test_a_run_killed_20_times_ends_like_an_undisturbed_one(run_file: Path, tmp_path: Path) -> None:
    sharded = run_file.read_text().replace("retrieve: {", "judge: {shards: 4}\nretrieve: {shards: 4, ")
    run_file.write_text(sharded)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    begin = time.monotonic()
    process = start(run_file, undisturbed)
    assert process.wait(timeout=600) == 0, process.communicate()[0]
    length = time.monotonic() - begin
    manifests = [undisturbed / f"runs/small/steps/embed-0.{part}.json" for part in range(4)]
    ends = [manifest.stat().st_mtime for manifest in manifests]
    starts = [end - json.loads(path.read_text())["seconds"] for end, path in zip(ends, manifests, strict=True)]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False)), "each part uses all cores"

    rng = random.Random(0)
    hits: list[str] = []
    while len(hits) < KILLS:
        process = start(run_file, killed)
        # At most a third of a run: the 20 kills hit all steps, and every attempt makes progress.
        time.sleep(rng.uniform(0.5, length / 3))
        # Alternate between the parent and one of its children. If only a step dies, the run must end with a message.
        children = await_children(process) if len(hits) % 2 else []
        victim = rng.choice(children or [process.pid])
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[0]
            done = sorted((killed / "runs/small/steps").glob("*.json"))
            # Finished before the last kill: delete a random manifest, and continue.
            rng.choice(done).unlink()
            continue
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:  # the child has just ended; the parent's id is still valid, as it was not waited for
            victim = process.pid
            os.kill(victim, signal.SIGKILL)
        hits.append("parent" if victim == process.pid else "child")
        process.communicate(timeout=120)
        assert process.returncode != 0 or victim != process.pid
        deadline = time.monotonic() + 30
        while group_members(process.pid):
            assert time.monotonic() < deadline, "a process is still alive after its run has ended"
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
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc (Linux)")
def test_training_resumes_from_a_checkpoint_to_equal_weights(run_file: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    longer = run_file.read_text().replace("finetune: {", "finetune: {epochs: 8, ")
    run_file.write_text(longer)
    assert start(run_file, undisturbed).wait(timeout=600) == 0

    process = start(run_file, killed)
    deadline = time.monotonic() + 120
    pattern = "runs/small/scratch/finetune-1/*/checkpoints/checkpoint-[1-9]*/trainer_state.json"
    while not list(killed.glob(pattern)):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (killed / "runs/small/steps/finetune-1.json").exists()

    again = start(run_file, killed)
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output
    assert "resuming from checkpoint-" in output
    assert outputs(killed) == outputs(undisturbed)
