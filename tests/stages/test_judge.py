"""`pyrite judge` as a process, with an LLM behind a stub server: kills, signals, limits, caching."""

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

import warm
from pyrite.config import load
from pyrite.judges import Judgment, open_judge
from pyrite.judges import Pair as JudgedPair
from pyrite.judges.cache import JudgmentCache
from pyrite.judges.llm import fingerprint
from pyrite.judges.prompt import load_prompt
from pyrite.store import open_store
from pyrite.tables import PASSAGES, QRELS, QUERIES
from stub_judge import MODEL, Fault, Pair, Stub, grade

Pyrite = Callable[..., subprocess.CompletedProcess[str]]
KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def retrieved(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, questions: Path) -> Path:
    """A folder with small.yaml and a store in which all steps before judging are done."""
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
    for arguments in (
        ["prepare", "small.yaml"],
        ["embed", "small.yaml", "-i", "0", "--shard", "0"],
        ["retrieve", "small.yaml", "-i", "1"],
    ):
        warm.pyrite([*arguments, "--store", "store"], folder).check_returncode()
    return folder


@pytest.fixture
def run_folder(retrieved: Path, tmp_path: Path) -> Path:
    shutil.copytree(retrieved, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        yield server


def judge_arguments(stub: Stub, *more: str) -> list[str]:
    return ["judge", "small.yaml", "-i", "1", "--shard", "0", f"resources.judge_urls=[{stub.url}]", *more]


def start(folder: Path, stub: Stub, *more: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pyrite", *judge_arguments(stub, *more)],
        # If pytest runs in the background, it ignores SIGINT, and its child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        cwd=folder,
        env={**os.environ, "PYRITE_STORE": "store", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def manifest(folder: Path, run: str = "small") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"store/runs/{run}/steps/judge-1.0.json").read_text())
    return found


def check_complete(folder: Path, run: str = "small") -> int:
    """Check that every candidate pair of the shard has one row with the model's grade. Returns their number."""
    from pyrite.stages.pairs import shard_of

    run_dir = folder / f"store/runs/{run}"
    expected = [
        (row["query_id"], row["passage_id"])
        for row in pq.read_table(run_dir / "iterations/1/candidates.parquet").to_pylist()
        if shard_of(row["query_id"], 2) == 0
    ]
    rows = pq.read_table(run_dir / "iterations/1/judgments/shard-00000.parquet").to_pylist()
    assert Counter((row["query_id"], row["passage_id"]) for row in rows) == Counter(expected)
    text = {row["query_id"]: row["text"] for row in pq.read_table(run_dir / "queries/queries.parquet").to_pylist()}
    text |= {row["passage_id"]: row["text"] for row in pq.read_table(run_dir / "corpus/passages.parquet").to_pylist()}
    for row in rows:
        assert row["grade"] == grade((text[row["query_id"]], text[row["passage_id"]]))
    assert len(expected) > 300
    return len(expected)


def test_a_killed_shard_resumes_and_has_every_pair_once(run_folder: Path, stub: Stub) -> None:
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
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    pairs = check_complete(run_folder)
    summary = manifest(run_folder)["summary"]
    assert 1 <= summary["cached"] <= before
    twice = stub.graded.total() - pairs
    assert 0 <= twice == before - summary["cached"], "only pairs that were not flushed are judged again"
    assert summary["judged"] == pairs
    assert summary["missing"] == 0
    timeline = summary["timeline"]
    assert sum(map(sum, timeline["grades"])) == pairs - summary["cached"], "only pairs of this process"
    began = datetime.fromisoformat(timeline["started"]) - datetime.fromisoformat(manifest(run_folder)["started"])
    assert 0 <= began.total_seconds() < 60


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGTERM, 143, "results are stored. Run the same command"), (signal.SIGINT, 130, "stopped; the same")],
)
def test_a_signal_flushes_judgments_and_metrics_are_served(
    run_folder: Path, stub: Stub, number: signal.Signals, code: int, message: str
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
    output, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert time.monotonic() - began < 5
    assert message in errors.replace("\n", " ")
    assert 'pyrite_judge_pairs_total{outcome="judged"}' in shown
    assert f'pyrite_llm_concurrency_limit{{server="{stub.url}"}} 4.0' in shown
    assert "pyrite_llm_request_seconds_count" in shown
    assert 'pyrite_step_units{unit="pairs judged"}' in shown
    assert "pyrite_judge_missing_pairs_limit 0.0" not in shown
    before = stub.settled().graded.total()

    again = start(run_folder, stub, PYRITE_JUDGE_API_KEY=KEY)
    output_again, errors_again = again.communicate(timeout=120)
    assert again.returncode == 0, errors_again
    check_complete(run_folder)
    assert before - 4 <= manifest(run_folder)["summary"]["cached"] <= before, "only pairs in flight are lost"
    texts = [output, errors, shown, output_again, errors_again]
    texts += [path.read_bytes().decode("latin-1") for path in run_folder.rglob("store/**/*") if path.is_file()]
    assert not any(KEY in text for text in texts)


def test_cached_pairs_need_no_server(run_folder: Path, stub: Stub, pyrite: Pyrite) -> None:
    shutil.copytree(run_folder / "store/runs/small", run_folder / "store/runs/other")
    assert pyrite(*judge_arguments(stub)).returncode == 0
    pairs = check_complete(run_folder)
    assert stub.graded.total() == pairs
    stub.down()
    requests = stub.paths.total()
    finished = pyrite(*judge_arguments(stub))
    assert "already finished" in finished.stdout + finished.stderr
    other = pyrite(*judge_arguments(stub, "name=other"))
    assert other.returncode == 0, other.stderr
    assert stub.paths.total() == requests
    assert check_complete(run_folder, "other") == manifest(run_folder, "other")["summary"]["cached"] == pairs


@pytest.mark.parametrize("setting", ["judge.patience=2", "judge.rank_window=7", "judge.stop=example"])
def test_a_resumed_shard_judges_the_same_pairs(run_folder: Path, stub: Stub, pyrite: Pyrite, setting: str) -> None:
    """Regression: a resumed shard selected other pairs than an uninterrupted one."""
    shutil.copytree(run_folder / "store/runs/small", run_folder / "store/runs/other")
    stub.fault = lambda number, _pair: "banana" if number > 60 else None
    assert pyrite(*judge_arguments(stub, setting)).returncode == 1
    assert stub.faults["banana"]
    stub.fault = lambda _number, _pair: None
    assert pyrite(*judge_arguments(stub, setting)).returncode == 0
    stub.down()
    assert pyrite(*judge_arguments(stub, setting, "name=other")).returncode == 0, (
        "an uninterrupted run needs no other pair"
    )

    def judged(run: str) -> list[tuple[str, str, int]]:
        table = pq.read_table(run_folder / f"store/runs/{run}/iterations/1/judgments/shard-00000.parquet")
        return sorted((row["query_id"], row["passage_id"], row["grade"]) for row in table.to_pylist())

    assert judged("small") == judged("other")
    summary = manifest(run_folder)["summary"]
    assert len(judged("small")) == summary["judged"] == stub.graded.total()
    assert summary["pairs"] == summary["judged"] + summary["skipped"] + summary["not_selected"]
    assert summary["missing"] == 0
    assert summary["not_selected" if "window" in setting else "skipped"] > 20


def test_a_cascade_pays_each_judge_once(run_folder: Path, stub: Stub, pyrite: Pyrite) -> None:
    """The first judge is a small LLM behind another server, which must not get the second's API key."""
    shutil.copytree(run_folder / "store/runs/small", run_folder / "store/runs/other")
    key, judges = "sk-second", "first: {kind: llm, model: stub, prompt: legal}, second: {kind: llm, model: stub}"
    stub.key = key
    with Stub() as small:
        settings = [
            f"judge={{kind: cascade, {judges}, pilot: 8, tolerance: 0.3, audit: 0.5}}",
            f"resources.first_judge_urls=[{small.url}]",
        ]
        result = pyrite(*judge_arguments(stub, *settings), PYRITE_JUDGE_API_KEY=key)
        assert result.returncode == 0, result.stderr
        summary = manifest(run_folder)["summary"]
        assert small.graded.total() == summary["first"]["judged"] > summary["by_first"] > 0
        assert stub.graded.total() == summary["judged"] < summary["first"]["judged"]
        assert summary["audit"]["pairs"] > 0
        small.down()
        stub.down()
        again = pyrite(*judge_arguments(stub, *settings, "name=other"), PYRITE_JUDGE_API_KEY=key)
        assert again.returncode == 0, again.stderr
    other = manifest(run_folder, "other")["summary"]
    assert (other["cached"], other["first"]["cached"]) == (summary["judged"], summary["first"]["judged"])
    assert other["by_first"] == summary["by_first"]


@pytest.mark.parametrize("wrong", ["first", "second"])
def test_a_cascade_checks_both_servers_before_grading(run_folder: Path, stub: Stub, pyrite: Pyrite, wrong: str) -> None:
    """Regression: a wrong setting of the second judge was noticed only after the first had graded the shard."""
    with Stub() as small:
        cascade = "{kind: cascade, first: {kind: llm, model: stub}, second: {kind: llm, model: stub, prompt: legal}}"
        {"first": small, "second": stub}[wrong].models = ["llama"]
        result = pyrite(*judge_arguments(stub, f"judge={cascade}", f"resources.first_judge_urls=[{small.url}]"))
        assert result.returncode == 2
        assert "does not serve 'stub' but llama" in " ".join(result.stderr.split())
        assert f"Set judge.{wrong}.model" in " ".join(result.stderr.split())
        texts = [text for server in (small, stub) for _, text in server.graded]
        assert all("capital" in text for text in texts), "only the sample is graded"
    assert not list((run_folder / "store/judgments").rglob("*.parquet"))


@pytest.mark.parametrize(("share", "percent", "limit"), [(0.02, "(2%)", 9), (0, "(0%)", 1)])
def test_a_shard_stops_above_its_missing_limit(
    run_folder: Path, stub: Stub, pyrite: Pyrite, share: float, percent: str, limit: int
) -> None:
    stub.fault = lambda number, _pair: "banana" if number > 100 else None
    result = pyrite(*judge_arguments(stub, f"judge.max_missing={share}"))
    assert result.returncode == 1
    assert stub.faults["banana"] >= limit * 3
    message = result.stderr.replace("\n", " ")
    assert f"more than judge.max_missing {percent} allows" in message
    assert "the model's reply is none of the grades 1 to 4: 'banana'" in message
    assert "Check the judge's server" in message
    assert "Traceback" not in message
    assert stub.requested.total() < 200, "the shard must stop at the limit"
    # Regression: only a finished shard reported its missing pairs.
    log = run_folder / "store/runs/small/logs/missing-1.0.jsonl"
    assert f"Missing pairs: {log}." in message
    missing = [json.loads(line) for line in log.read_text().splitlines()]
    assert len({(row["query_id"], row["passage_id"]) for row in missing}) == len(missing) >= limit
    assert {row["reason"] for row in missing} == {"the model's reply is none of the grades 1 to 4: 'banana'"}
    stub.fault = lambda _number, _pair: None
    assert pyrite(*judge_arguments(stub)).returncode == 0
    assert manifest(run_folder)["summary"]["cached"] == 100
    check_complete(run_folder)


def test_a_cascade_lists_the_missing_pairs_of_its_first_judge(run_folder: Path, stub: Stub, pyrite: Pyrite) -> None:
    stub.fault = lambda _number, _pair: "banana"
    cascade = "judge={kind: cascade, first: {kind: llm, model: stub}, second: {kind: labels}}"
    result = pyrite(*judge_arguments(stub, cascade, f"resources.first_judge_urls=[{stub.url}]"))
    assert result.returncode == 1
    log = run_folder / "store/runs/small/logs/missing-1.0.jsonl"
    assert f"Check the server of judge.first. Missing pairs: {log}." in result.stderr.replace("\n", " ")
    assert len(log.read_text().splitlines()) > 5


def test_a_missing_pair_that_another_run_judges_stays_missing(run_folder: Path, stub: Stub, pyrite: Pyrite) -> None:
    """Regression: the pair counted as missing and as judged, and the shard failed."""
    run = run_folder / "store/runs/small"
    ids = {row["text"]: row["query_id"] for row in pq.read_table(run / "queries/queries.parquet").to_pylist()}
    ids |= {row["text"]: row["passage_id"] for row in pq.read_table(run / "corpus/passages.parquet").to_pylist()}
    judge = fingerprint(MODEL, load_prompt("general"))
    spec = load(run_folder / "small.yaml", [f"resources.judge_urls=[{stub.url}]"])
    writer = open_judge(spec.main_judge, *(each.empty_table() for each in (QUERIES, PASSAGES, QRELS)))
    assert writer.fingerprint == judge
    cache = JudgmentCache(open_store(str(run_folder / "store")), writer, "other/1.0", "one")
    first: list[Pair] = []

    def judged_by_another_run(_number: int, pair: Pair) -> Fault | None:
        if not first:
            judgment = Judgment(JudgedPair(ids[pair[0]], ids[pair[1]]), grade(pair), None)
            cache.add([judgment.row(judge)])
            first.append(pair)
        return "banana" if pair == first[0] else None

    stub.fault = judged_by_another_run
    result = pyrite(*judge_arguments(stub))
    assert result.returncode == 0, result.stderr
    assert stub.faults["banana"] == 3
    summary = manifest(run_folder)["summary"]
    assert (summary["missing"], summary["judged"]) == (1, summary["pairs"] - 1)


@pytest.mark.parametrize(
    ("break_server", "parts"),
    [
        (lambda stub: setattr(stub, "key", "another"), ["does not accept the API key", "PYRITE_JUDGE_API_KEY"]),
        (lambda stub: setattr(stub, "models", ["llama"]), ["does not serve 'stub' but llama", "judge.model"]),
        (
            lambda stub: setattr(stub, "fault", lambda _number, _pair: (400, {})),
            ["rejects the request", "stub says 400"],
        ),
    ],
)
def test_wrong_settings_stop_at_once_with_exit_code_2(
    run_folder: Path, stub: Stub, pyrite: Pyrite, break_server: Callable[[Stub], None], parts: list[str]
) -> None:
    del run_folder
    break_server(stub)
    result = pyrite(*judge_arguments(stub), PYRITE_JUDGE_API_KEY=KEY)
    assert result.returncode == 2, result.stderr
    assert all(part in result.stderr.replace("\n", " ") for part in [stub.url, *parts])
    assert "Traceback" not in result.stderr
    assert KEY not in result.stderr + result.stdout
    assert not stub.graded


@pytest.mark.slow
def test_train_checks_settings_first_and_shows_warnings(run_folder: Path, pyrite: Pyrite) -> None:
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
    output = " ".join(result.stdout.split())
    assert output.count("warning: ") == 1
    assert "not every server supports structured outputs or logprobs" in output
    assert "not every server supports" in (run_folder / "store/runs/small/logs/judge-1.0.log").read_text()


def test_a_changed_prompt_is_judged_again(run_folder: Path, stub: Stub, pyrite: Pyrite) -> None:
    prompt = run_folder / "mine.yaml"
    prompt.write_text("template: |\n  Grade 1 to 4.\n  {query}\n  {passage}\n")
    assert pyrite(*judge_arguments(stub, f"judge.prompt={prompt}")).returncode == 0
    pairs = stub.graded.total()
    prompt.write_text("template: |\n  Grade 1 to 4, strictly.\n  {query}\n  {passage}\n")
    result = pyrite(*judge_arguments(stub, f"judge.prompt={prompt}"))
    assert "the prompt changed" in result.stdout.replace("\n", " ")
    assert stub.graded.total() == 2 * pairs
    check_complete(run_folder)
