"""`pyrite judge` with an LLM behind a stub server, as a person or a cluster runs it: kills, stops, budgets, reuse."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pyrite.judges import Judgment
from pyrite.judges import Pair as JudgedPair
from pyrite.judges.cache import JudgmentCache
from pyrite.judges.llm import fingerprint
from pyrite.judges.prompt import load_prompt
from pyrite.store import open_store
from stub_judge import MODEL, Fault, Pair, Stub, grade

Pyrite = Callable[..., subprocess.CompletedProcess[str]]
KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def retrieved(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, questions: Path) -> Path:
    """A folder with small.yaml and a store in which all that comes before judging is done."""
    folder = tmp_path_factory.mktemp("retrieved")
    (folder / "small.yaml").write_text(
        f"""\
source: {{kind: jsonl, path: {questions}, topic: topic, type: type}}
model: {{base: {tiny_model}}}
prepare: {{min_chars: 40, max_chars: 400}}
retrieve: {{range_max: 20}}
judge: {{kind: llm, model: {MODEL}, shards: 2, rank_window: null}}
"""
    )
    for words in (["prepare", "small.yaml"], ["retrieve", "small.yaml", "-i", "1"]):
        subprocess.run(
            [sys.executable, "-m", "pyrite", *words, "--store", "store"], cwd=folder, check=True, capture_output=True
        )
    return folder


@pytest.fixture
def run_folder(retrieved: Path, tmp_path: Path) -> Path:
    shutil.copytree(retrieved, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        yield server


def words(stub: Stub, *more: str) -> list[str]:
    return ["judge", "small.yaml", "-i", "1", "--shard", "0", f"resources.judge_urls=[{stub.url}]", *more]


def start(folder: Path, stub: Stub, *more: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pyrite", *words(stub, *more)],
        # A test run started in the background ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        cwd=folder,
        env={**os.environ, "PYRITE_STORE": "store", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def manifest(folder: Path, run: str = "small") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"store/runs/{run}/steps/judge-1.0.json").read_text())
    return found


def check_complete(folder: Path, run: str = "small") -> int:
    """Every candidate pair of the shard has one row, and its grade is the model's. How many there are."""
    from pyrite.stages.judge import shard_of

    place = folder / f"store/runs/{run}"
    wanted = [
        (row["query_id"], row["passage_id"])
        for row in pq.read_table(place / "iterations/1/candidates.parquet").to_pylist()
        if shard_of(row["query_id"], 2) == 0
    ]
    rows = pq.read_table(place / "iterations/1/judgments/shard-00000.parquet").to_pylist()
    assert Counter((row["query_id"], row["passage_id"]) for row in rows) == Counter(wanted), "each once, none invented"
    text = {row["query_id"]: row["text"] for row in pq.read_table(place / "queries/queries.parquet").to_pylist()}
    text |= {row["passage_id"]: row["text"] for row in pq.read_table(place / "corpus/passages.parquet").to_pylist()}
    for row in rows:
        assert row["grade"] == grade((text[row["query_id"]], text[row["passage_id"]]))
    assert len(wanted) > 300
    return len(wanted)


def test_killed_mid_way_and_started_again_every_pair_is_there_once(run_folder: Path, stub: Stub) -> None:
    stub.delay = 0.05
    process = start(run_folder, stub, "resources.judge_concurrency=2")
    wait_for(lambda: bool(list((run_folder / "store/judgments").rglob("*.parquet"))), process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert not (run_folder / "store/runs/small/steps/judge-1.0.json").exists()
    before = stub.settled().graded.total()

    stub.delay = 0
    again = start(run_folder, stub)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    pairs = check_complete(run_folder)
    summary = manifest(run_folder)["summary"]
    assert 1 <= summary["cached"] <= before
    twice = stub.graded.total() - pairs
    assert 0 <= twice == before - summary["cached"], "asked again is only what the killed worker had not put away"
    assert summary["judged"] == pairs
    assert summary["missing"] == 0
    timeline = summary["timeline"]
    assert sum(map(sum, timeline["grades"])) == pairs - summary["cached"], "what this start has asked, and no more"
    began = datetime.fromisoformat(timeline["started"]) - datetime.fromisoformat(manifest(run_folder)["started"])
    assert 0 <= began.total_seconds() < 60


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [(signal.SIGTERM, 143, "is kept. The same command goes on from here"), (signal.SIGINT, 130, "stopped; the same")],
)
def test_told_to_stop_it_puts_its_work_away_and_shows_its_metrics_while_it_works(
    run_folder: Path, stub: Stub, number: signal.Signals, code: int, told: str
) -> None:
    stub.delay = 0.05
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start(
        run_folder, stub, "resources.judge_concurrency=4", PYRITE_METRICS_PORT=str(port), PYRITE_JUDGE_API_KEY=KEY
    )
    wait_for(lambda: stub.graded.total() >= 40, process)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        shown = response.read().decode()
    began = time.monotonic()
    process.send_signal(number)
    output, said = process.communicate(timeout=30)
    assert process.returncode == code, said
    assert time.monotonic() - began < 5
    assert told in said.replace("\n", " ")
    assert 'pyrite_judge_pairs_total{outcome="judged"}' in shown
    assert f'pyrite_llm_concurrency_limit{{server="{stub.url}"}} 4.0' in shown
    assert "pyrite_llm_request_seconds_count" in shown
    assert 'pyrite_step_units{unit="pairs judged"}' in shown
    assert "pyrite_judge_missing_pairs_limit 0.0" not in shown
    before = stub.settled().graded.total()

    again = start(run_folder, stub, PYRITE_JUDGE_API_KEY=KEY)
    output_again, said_again = again.communicate(timeout=120)
    assert again.returncode == 0, said_again
    check_complete(run_folder)
    assert before - 4 <= manifest(run_folder)["summary"]["cached"] <= before, "lost is only what was in flight"
    texts = [output, said, shown, output_again, said_again]
    texts += [path.read_bytes().decode("latin-1") for path in run_folder.rglob("store/**/*") if path.is_file()]
    assert not any(KEY in text for text in texts)


def test_what_is_judged_is_asked_by_no_later_run_and_needs_no_server(
    run_folder: Path, stub: Stub, pyrite: Pyrite
) -> None:
    shutil.copytree(run_folder / "store/runs/small", run_folder / "store/runs/other")
    assert pyrite(*words(stub)).returncode == 0
    pairs = check_complete(run_folder)
    assert stub.graded.total() == pairs
    stub.down()
    requests = stub.paths.total()
    finished = pyrite(*words(stub))
    assert "already finished" in finished.stdout + finished.stderr
    other = pyrite(*words(stub, "name=other"))
    assert other.returncode == 0, other.stderr
    assert stub.paths.total() == requests
    assert check_complete(run_folder, "other") == manifest(run_folder, "other")["summary"]["cached"] == pairs


@pytest.mark.parametrize("way", ["judge.patience=2", "judge.sample={top: 3, deeper: 4, decay: 0.2}"])
def test_fewer_pairs_by_patience_or_by_drawing_are_the_same_after_a_stop(
    run_folder: Path, stub: Stub, pyrite: Pyrite, way: str
) -> None:
    """The bug: a shard that goes on counts or walks other pairs than one that was never stopped."""
    shutil.copytree(run_folder / "store/runs/small", run_folder / "store/runs/other")
    stub.fault = lambda number, _pair: "banana" if number > 60 else None
    assert pyrite(*words(stub, way)).returncode == 1
    assert stub.faults["banana"]
    stub.fault = lambda _number, _pair: None
    assert pyrite(*words(stub, way)).returncode == 0
    stub.down()
    assert pyrite(*words(stub, way, "name=other")).returncode == 0, "a run in one go needs no other pair"

    def judged(run: str) -> list[tuple[str, str, int]]:
        table = pq.read_table(run_folder / f"store/runs/{run}/iterations/1/judgments/shard-00000.parquet")
        return sorted((row["query_id"], row["passage_id"], row["grade"]) for row in table.to_pylist())

    assert judged("small") == judged("other")
    summary = manifest(run_folder)["summary"]
    assert len(judged("small")) == summary["judged"] == stub.graded.total()
    assert summary["pairs"] == summary["judged"] + summary["skipped"] + summary["not_selected"]
    assert summary["missing"] == 0
    assert summary["skipped" if "patience" in way else "not_selected"] > 100


@pytest.mark.parametrize(("share", "said", "most"), [(0.02, "(2%)", 9), (0, "(0%)", 1)])
def test_over_its_failure_budget_it_stops_with_one_sentence_and_keeps_what_it_has(
    run_folder: Path, stub: Stub, pyrite: Pyrite, share: float, said: str, most: int
) -> None:
    stub.fault = lambda number, _pair: "banana" if number > 100 else None
    result = pyrite(*words(stub, f"judge.max_missing={share}"))
    assert result.returncode == 1
    assert stub.faults["banana"] >= most * 3
    told = result.stderr.replace("\n", " ")
    assert f"more than judge.max_missing {said} allows" in told
    assert "the model's reply is none of the grades 1 to 4" in told
    assert "Look at the judge's server" in told
    assert "Traceback" not in told
    assert stub.requested.total() < 200, "it stops at the budget, not at the end"
    # The bug: which pairs are missing, and why, is told only by a shard that finishes.
    left = run_folder / "store/runs/small/logs/missing-1.0.jsonl"
    assert f"Which pairs, and why: {left}." in told
    absent = [json.loads(line) for line in left.read_text().splitlines()]
    assert len({(row["query_id"], row["passage_id"]) for row in absent}) == len(absent) >= most
    assert {row["reason"] for row in absent} == {"the model's reply is none of the grades 1 to 4"}
    stub.fault = lambda _number, _pair: None
    assert pyrite(*words(stub)).returncode == 0
    assert manifest(run_folder)["summary"]["cached"] == 100
    check_complete(run_folder)


def test_what_is_missing_here_and_was_judged_for_another_run_meanwhile_stays_missing_here(
    run_folder: Path, stub: Stub, pyrite: Pyrite
) -> None:
    """The bug: the pair is there as missing and as judged, so the counts do not add up and the shard fails."""
    place = run_folder / "store/runs/small"
    ids = {row["text"]: row["query_id"] for row in pq.read_table(place / "queries/queries.parquet").to_pylist()}
    ids |= {row["text"]: row["passage_id"] for row in pq.read_table(place / "corpus/passages.parquet").to_pylist()}
    judge = fingerprint(MODEL, load_prompt("general"))
    kept = JudgmentCache(open_store(str(run_folder / "store")), judge, "other/1.0", "one")
    first: list[Pair] = []

    def another_run_has_it_judged(_number: int, pair: Pair) -> Fault | None:
        if not first:
            judgment = Judgment(JudgedPair(ids[pair[0]], ids[pair[1]]), grade(pair), None)
            kept.add([judgment.row(judge)])
            first.append(pair)
        return "banana" if pair == first[0] else None

    stub.fault = another_run_has_it_judged
    result = pyrite(*words(stub))
    assert result.returncode == 0, result.stderr
    assert stub.faults["banana"] == 3
    summary = manifest(run_folder)["summary"]
    assert (summary["missing"], summary["judged"]) == (1, summary["pairs"] - 1)


@pytest.mark.parametrize(
    ("break_it", "parts"),
    [
        (lambda stub: setattr(stub, "key", "another"), ["does not accept the API key", "PYRITE_JUDGE_API_KEY"]),
        (lambda stub: setattr(stub, "models", ["llama"]), ["does not serve 'stub' but llama", "judge.model"]),
        (
            lambda stub: setattr(stub, "fault", lambda _number, _pair: (400, {})),
            ["refuses the request", "stub says 400"],
        ),
    ],
)
def test_what_a_person_must_mend_stops_at_once_with_exit_code_2(
    run_folder: Path, stub: Stub, pyrite: Pyrite, break_it: Callable[[Stub], None], parts: list[str]
) -> None:
    del run_folder
    break_it(stub)
    result = pyrite(*words(stub), PYRITE_JUDGE_API_KEY=KEY)
    assert result.returncode == 2, result.stderr
    assert all(part in result.stderr.replace("\n", " ") for part in [stub.url, *parts])
    assert "Traceback" not in result.stderr
    assert KEY not in result.stderr + result.stdout
    assert not stub.graded


@pytest.mark.slow
def test_train_names_a_wrong_setting_before_any_work_and_says_what_a_server_cannot_do(
    run_folder: Path, pyrite: Pyrite
) -> None:
    steps = run_folder / "store/runs/small/steps"
    result = pyrite("train", "small.yaml", "evaluate.blends=[]", "resources.judge_urls=[]")
    assert result.returncode == 2
    assert "resources.judge_urls is empty" in result.stderr
    assert not (steps / "validate-0.json").exists()
    with Stub("none") as stub:
        stub.fault = lambda _number, _pair: "banana"
        urls = f"resources.judge_urls=[{stub.url}]"
        result = pyrite("train", "small.yaml", "evaluate.blends=[]", "resources.judge_workers=1", urls)
    assert result.returncode == 1
    assert stub.faults["banana"], result.stderr
    told = " ".join(result.stdout.split())
    assert told.count("warning: ") == 1
    assert "neither structured outputs nor logprobs are to be had" in told
    assert "neither structured outputs" in (run_folder / "store/runs/small/logs/judge-1.0.log").read_text()


def test_a_changed_prompt_is_judged_anew(run_folder: Path, stub: Stub, pyrite: Pyrite) -> None:
    prompt = run_folder / "mine.yaml"
    prompt.write_text("template: |\n  Grade 1 to 4.\n  {query}\n  {passage}\n")
    assert pyrite(*words(stub, f"judge.prompt={prompt}")).returncode == 0
    pairs = stub.graded.total()
    prompt.write_text("template: |\n  Grade 1 to 4, strictly.\n  {query}\n  {passage}\n")
    result = pyrite(*words(stub, f"judge.prompt={prompt}"))
    assert "the prompt changed" in result.stdout.replace("\n", " ")
    assert stub.graded.total() == 2 * pairs
    check_complete(run_folder)
