"""Complete runs on the command line, with a tiny model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import datasets
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pyrite.cli import app
from pyrite.errors import UserError
from pyrite.locks import locked
from small_data import PASSAGE, found_first
from stub_judge import MODEL, Stub

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def trained(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> Path:
    """The folder of a finished run."""
    result = pyrite("train", run_file)
    assert result.returncode == 0, result.stderr + result.stdout
    last = result.stdout.rstrip().splitlines()[-1]
    assert last == str(tmp_path / "store/runs/small/report/report.html")
    for metric in ("MRR@5", "DCG@5", "nDCG@10"):
        assert metric in result.stdout
    assert max(map(len, result.stdout.splitlines()[:-2])) <= 80
    return tmp_path / "store/runs/small"


def test_a_run_can_be_read_resumed_and_searched(trained: Path, pyrite: Pyrite, run_file: Path) -> None:
    again = pyrite("train", run_file)
    assert "finished; nothing to do" in again.stdout

    tables = ("corpus/passages", "queries/queries", "queries/qrels", "iterations/1/candidates", "iterations/2/examples")
    for name in tables:
        rows = datasets.load_dataset("parquet", data_files=str(trained / f"{name}.parquet"), split="train")
        assert len(rows) > 0
    splits = pq.read_table(trained / "queries/queries.parquet").to_pylist()
    topics = {split: {row["topic"] for row in splits if row["split"] == split} for split in ("train", "val", "test")}
    assert all(topics.values())
    assert not topics["train"] & (topics["val"] | topics["test"])
    passages = pq.read_table(trained / "corpus/passages.parquet").to_pylist()
    held_out = {row["passage_id"] for row in passages if row["split"] != "train"}
    for i in (1, 2):
        for row in pq.read_table(trained / f"iterations/{i}/examples.parquet").to_pylist():
            assert held_out.isdisjoint([row["positive_id"], *row["negative_ids"]])

    peaks = [json.loads(path.read_text())["peak_memory_bytes"] for path in (trained / "steps").glob("*.json")]
    assert 50e6 < min(peaks) <= max(peaks) < 20e9, "bytes, not kibibytes"

    report = json.loads((trained / "report/report.json").read_text())
    assert set(report["models"]) >= {"base", "iteration-1", "iteration-2"}
    assert [row["name"] for row in report["references"]] == ["bm25"], "no passage has a context"
    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(str(trained / "model"), device="cpu").encode_query("asthma?").shape == (32,)
    assert "pyrite" in (trained / "model/README.md").read_text()
    assert not [p for p in trained.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not (trained / "scratch").exists() or not list((trained / "scratch").rglob("*.parquet"))

    status = pyrite("status", "small")
    assert re.search(r"finetune, iteration 2\s+done", status.stdout)
    assert pyrite("report", "small").stdout.rstrip().endswith("report.html")
    found = pyrite("search", "small", PASSAGE, COLUMNS="1000")
    assert found.returncode == 0, found.stderr
    assert found_first(found.stdout)

    # A changed setting of mining runs mining and later steps again, and prints why. Earlier steps stay done.
    other = pyrite("train", run_file, "mine.num_negatives=1", "iterations=1", "name=small")
    assert "mine.num_negatives was 2, is 1" in other.stdout
    assert "done  judge" not in other.stdout
    assert other.returncode == 0
    compared = pyrite("compare", "small", "small")
    assert compared.returncode == 0, compared.stderr
    assert "warning" not in compared.stderr

    # An outdated result is shown with a warning. A finished step whose next attempt failed is shown as failed.
    assert pyrite("mine", run_file, "mine.num_negatives=2", "iterations=1", "name=small", "-i", 1).returncode == 0
    for command in (["report", "small"], ["compare", "small", "small"], ["search", "small", "How is gout treated?"]):
        assert "run small has changed since this result was written" in pyrite(*command, COLUMNS="200").stderr
    assert re.search(r"finetune, iteration 1 +to do again", pyrite("status", "small", COLUMNS="200").stdout)
    time.sleep(2)
    with (trained / "logs/finetune-1.log").open("a") as log:
        log.write("failed: it broke\n")
    assert re.search(r"finetune, iteration 1 +failed +it broke", pyrite("status", "small", COLUMNS="200").stdout)


@pytest.mark.slow
def test_the_exit_code_shows_whether_the_gate_was_met(pyrite: Pyrite, run_file: Path) -> None:
    impossible = ("evaluate.gate={mrr@5: 50, dcg@5: 50}", "iterations=1")
    assert pyrite("train", run_file, "--gate", *impossible).returncode == 3
    assert pyrite("train", run_file, *impossible).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["distill", "triplet", "cached-multiple-negatives"])
def test_every_loss_trains_the_saved_model(loss: str, pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    negatives = f"mine.num_negatives={4 if loss == 'distill' else 1}"
    result = pyrite("train", run_file, f"finetune.loss={loss}", negatives, "mine.rule=nearest", "iterations=1")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "store/runs/small/report/report.json").read_text())
    assert report["means"]["val"]["iteration-1"] != report["means"]["val"]["base"]


@pytest.mark.slow
def test_single_steps_give_the_result_of_train(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    steps: list[list[object]] = [
        ["prepare"],
        ["embed", "-i", 0, "--shard", 0],
        ["validate", "-i", 0],
        ["retrieve", "-i", 1],
        ["judge", "-i", 1, "--shard", 0],
        ["judge", "-i", 1, "--shard", 1],
        ["mine", "-i", 1],
        ["finetune", "-i", 1],
        ["embed", "-i", 1, "--shard", 0],
        ["validate", "-i", 1],
        ["evaluate"],
    ]
    early = pyrite("mine", run_file, "iterations=1", "-i", 1)
    assert early.returncode == 2
    assert "prepare" in early.stderr
    for verb, *options in steps:
        result = pyrite(verb, run_file, "iterations=1", *options)
        assert result.returncode == 0, f"{verb}: {result.stderr}"
    assert "already finished" in pyrite("mine", run_file, "iterations=1", "-i", 1).stdout
    for options, why in ((["-i", 1, "--shard", 2], "its shards are 0 to 1"), (["-i", 2, "--shard", 0], "fewer iter")):
        absent = pyrite("judge", run_file, "iterations=1", *options)
        assert absent.returncode == 2
        assert why in absent.stderr
    by_hand = json.loads((tmp_path / "store/runs/small/report/report.json").read_text())
    other = pyrite("train", run_file, "iterations=1", PYRITE_STORE=str(tmp_path / "other"))
    assert other.returncode == 0, other.stderr
    at_once = json.loads((tmp_path / "other/runs/small/report/report.json").read_text())
    assert by_hand["per_query"] == at_once["per_query"]


def test_a_second_writer_is_refused_with_the_first_ones_pid(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    lock = tmp_path / "store/runs/small/locks/run"
    lock.parent.mkdir(parents=True)
    lock.write_text("process 99999 on elsewhere since 2020")  # left by a killed process
    # Single steps share the run's lock with each other, but not with train.
    for shared, verbs in ((False, ("train", "prepare")), (True, ("train",))):
        with locked(lock, "run small", shared=shared):
            for verb in verbs:
                result = pyrite(verb, run_file)
                assert result.returncode == 2
                assert f"worked on by process {os.getpid()}" in result.stderr.replace("\n", " ")
                assert "Traceback" not in result.stderr
    assert lock.read_text() == ""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_stop_signals_end_every_process_and_train_resumes(
    run_file: Path, tmp_path: Path, pyrite: Pyrite, number: int, code: int
) -> None:
    """For Kubernetes, exit code 143 means: not a failure, all work is saved, start it again."""
    store = tmp_path / "store"
    process = subprocess.Popen(
        [sys.executable, "-m", "pyrite", "train", str(run_file), "iterations=1"],
        cwd=tmp_path,
        env={**os.environ, "PYRITE_STORE": str(store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # If pytest runs in the background, it ignores SIGINT, and its child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (store / "runs/small/steps/prepare.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number) if number == signal.SIGTERM else os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command resumes" in err
    assert not (store / "runs/small/steps/evaluate.json").exists()
    deadline = time.monotonic() + 20
    while group_exists(process.pid):
        assert time.monotonic() < deadline, "a process outlived its run"
        time.sleep(0.1)
    after = pyrite("train", run_file, "iterations=1")
    assert after.returncode == 0
    assert "already finished; resuming" in after.stdout


def test_a_no_go_probe_stops_train_unless_forced(
    pyrite: Pyrite, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stub server grades at random, which is a no-go."""
    executed = Mock()
    monkeypatch.setattr("pyrite.cli.train.execute", executed)
    monkeypatch.setattr("pyrite.cli.train._show_result", lambda _: True)

    def train(*options: str) -> tuple[str, bool]:
        """The output of `pyrite train`, and whether it executed the run."""
        executed.reset_mock()
        arguments = ["train", str(run_file), *judge, "--store", str(tmp_path / "store"), *options]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "1000"})
        if isinstance(result.exception, UserError):
            return str(result.exception), executed.called
        assert result.exit_code == 0, result.output
        return result.output, executed.called

    with Stub() as server:
        judge = ["judge.kind=llm", f"judge.model={MODEL}", f"resources.judge_urls=[{server.url}]"]
        output, is_executed = train()
        assert is_executed
        assert "note: this judge is not probed" in output
        assert pyrite("probe", run_file, *judge, "--queries", 3).returncode == 3
        output, is_executed = train()
        assert is_executed
        assert "note: the probe of this judge had too few pairs to tell" in output
        result = pyrite("probe", run_file, *judge)
        assert result.returncode == 3
        page = result.stdout.rstrip().splitlines()[-1]
        pyrite("probe", run_file)  # of another judge
    output, is_executed = train()
    assert not is_executed
    assert output.startswith("this judge failed its probe (")
    assert "known above random: known relevant passages are not clearly graded above random ones" in output
    assert "few missing" not in output, "only failed checks are named"
    assert output.endswith(page), "each judge has its own page"
    assert f"{MODEL}, prompt general" in Path(page).read_text()
    assert pyrite("train", run_file, *judge).returncode == 2
    output, is_executed = train("--force")
    assert is_executed
    assert "note: this judge failed its probe (" in output
    estimate = CliRunner().invoke(app, ["estimate", str(run_file), *judge, "--store", str(tmp_path / "store")])
    for output in (train("--dry-run")[0], estimate.output):
        assert "note: this judge failed its probe (" in " ".join(output.split())
    calibration = tmp_path / "calibration.json"
    probed = json.loads(Path(page).with_name("probe.json").read_text())["judge"]["fingerprint"]
    fitted = {"x": [1, 4], "y": [1, 4], "cut_points": [1.5, 2.5, 3.5]}
    calibration.write_text(json.dumps({"judge": {"fingerprint": probed}, "calibration": fitted}))
    for other in ("judge.prompt=medical", f"judge.calibration={calibration}", "judge.kind=labels"):
        output, is_executed = train(other)
        assert is_executed, "the probe was of another judge"
        assert ("not probed" in output) == (other != "judge.kind=labels")


def test_dry_run_shows_the_plan_and_writes_nothing(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    result = pyrite("train", run_file, "--dry-run", "judge.noise.kappa=0.5")
    assert result.returncode == 0, result.stderr
    assert "finetune, iteration 2" in result.stdout
    assert "memory" in result.stdout
    assert "Judge: labels with simulated errors (noise of kappa 0.5)." in " ".join(result.stdout.split())
    cascade = "judge={kind: cascade, first: {kind: labels}, second: {kind: labels}, shards: 1}"
    for pilot in (1, 1000):
        shown = " ".join(pyrite("train", run_file, "--dry-run", cascade, f"judge.pilot={pilot}").stdout.split())
        assert ("judge.pilot (1000) covers all queries of a shard" in shown) == (pilot == 1000)
    assert not (tmp_path / "store").exists()
