"""The stage assess, through the command line: a second judge grades the candidates of a run on documents."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import warm
from pyrite.judges.llm import fingerprint
from pyrite.judges.prompt import load_prompt
from small_data import KINDS, TOPICS
from stub_judge import MODEL, Pair, Stub
from stub_writer import Writer

SECOND = "umpire-7b"
KEY = "sk-very-secret-0123456789"


class Umpire(Stub):
    """The second judge. It gives grade 4 to the pairs that ``prefers`` accepts, and grade 1 to all others."""

    def __init__(self) -> None:
        super().__init__("choice")
        self.models = [SECOND]
        self.prefers: Callable[[Pair], bool] = lambda pair: len(pair[1]) % 3 == 0

    def _completion(self, body: dict[str, Any], pair: Pair | None, length: int) -> dict[str, Any]:
        reply = super()._completion(body, pair, length)
        if pair:
            reply["choices"][0] = {"message": {"content": "4" if self.prefers(pair) else "1"}}
        return reply


class Finished(NamedTuple):
    """A folder with small.yaml and a store with its finished run, and the pairs that the second judge graded."""

    folder: Path
    graded: dict[Pair, int]
    output: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Finished:
    """A run on 60 documents: one server writes the questions and judges for training, another one evaluates."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [
        {"text": answer.format(topic, f"{topic[:4]}{number}", f"{topic[-3:]}{kind[:3]}"), "topic": topic}
        for number, topic in enumerate(TOPICS)
        for kind, (_, answer) in KINDS.items()
    ]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Writer() as writer, Umpire() as umpire:
        (folder / "small.yaml").write_text(
            f"""\
source: {{kind: documents, path: {folder / "documents.jsonl"}, topic: topic}}
model: {{base: {tiny_model}, query_prompt: "", passage_prompt: ""}}
iterations: 1
prepare: {{min_chars: 40, max_chars: 400}}
generate: {{queries: 50, share_from_passages: 1, answerable_grade: null}}
judge: {{kind: llm, model: {MODEL}}}
retrieve: {{range_max: 20}}
mine: {{num_negatives: 2, relative_margin: null}}
finetune: {{batch_size: 8, learning_rate: 1.0e-3}}
evaluate: {{blends: [0.5], resamples: 200, judge: {{model: {SECOND}}}}}
resources: {{judge_urls: ["{writer.url}"], evaluate_judge_urls: ["{umpire.url}"]}}
"""
        )
        result = call(folder, "train")
        assert result.returncode == 0, result.stderr
        assert not any(model in message for message in umpire.messages for model in ("iteration", "base model"))
        return Finished(folder, dict(umpire.graded), result.stdout)


@pytest.fixture
def run_folder(finished: Finished, tmp_path: Path) -> Path:
    shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def umpire() -> Iterator[Umpire]:
    with Umpire() as server:
        yield server


def call(folder: Path, verb: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"PYRITE_STORE": "store", "COLUMNS": "200", **environment}
    return warm.pyrite([verb, "small.yaml", *more], folder, **settings)


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / "store/runs/small" / name).to_pylist())


def rankings(folder: Path) -> list[dict[str, Any]]:
    """The rankings of all candidates, with the texts of their pairs as the judge reads them (``pair``)."""
    run = folder / "store/runs/small"
    queries = [pq.read_table(path) for path in (run / "queries").glob("generated-0*.parquet")]
    text = {row["query_id"]: row["text"] for row in pa.concat_tables(queries).to_pylist()}
    text |= {row["passage_id"]: row["text"] for row in table(folder, "corpus/passages.parquet")}
    return [
        {**row, "pair": (text[row["query_id"]], text[row["passage_id"]])}
        for iteration in (0, 1)
        for row in table(folder, f"iterations/{iteration}/metrics/rankings.parquet")
    ]


def only_first_of(model: str, other: str, split: str, ranked: list[dict[str, Any]]) -> set[Pair]:
    """Pairs of ``split`` that ``model`` has among its first 5, and ``other`` not among its first 10."""
    theirs = {row["pair"] for row in ranked if row["model"] == other}
    found = {row["pair"] for row in ranked if row["model"] == model and row["split"] == split and row["rank"] <= 5}
    assert found - theirs
    return found - theirs


def report_by(folder: Path, umpire: Umpire, model: str, preferred: set[Pair]) -> dict[str, Any]:
    """The report if the second judge is ``model``, which finds only the ``preferred`` pairs relevant."""
    umpire.models, umpire.prefers = [model], lambda pair: pair in preferred
    settings = (f"evaluate.judge.model={model}", f"resources.evaluate_judge_urls=[{umpire.url}]")
    for verb in ("assess", "evaluate"):
        result = call(folder, verb, *settings)
        assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads((folder / "store/runs/small/report/report.json").read_text())
    return found


def test_every_candidates_top_10_is_graded_once(finished: Finished) -> None:
    ranked = rankings(finished.folder)
    assert {row["model"] for row in ranked} == {"base", "iteration-1", "iteration-1@0.5"}
    assert {row["split"] for row in ranked} == {"val", "test"}
    assert max(row["rank"] for row in ranked) == 10
    assert finished.graded == dict.fromkeys((row["pair"] for row in ranked), 1)
    judged = table(finished.folder, "assessment/judgments.parquet")
    assert {row["judge"] for row in judged} == {fingerprint(SECOND, load_prompt("general"))}
    assert "Judged by umpire-7b, " in finished.output
    assert "Relevance was judged by umpire-7b; there is no answer key." in " ".join(finished.output.split())
    page = (finished.folder / "store/runs/small/report/report.html").read_text()
    assert page.index("Results on test by a second judge") < page.index("Results on test by known answers")


def test_validation_grades_choose_and_test_grades_do_not(run_folder: Path, umpire: Umpire) -> None:
    ranked = rankings(run_folder)
    val, test = (only_first_of("iteration-1", "base", split, ranked) for split in ("val", "test"))
    better = report_by(run_folder, umpire, "prefers-tuned", val | test)
    assert better["chosen"] != "base"
    assert better["judged"]["chooses"]
    assert better["judged"]["means"]["iteration-1"]["mrr@5"] > better["judged"]["means"]["base"]["mrr@5"]
    found = better["judged"]["comparisons"][better["chosen"]]["mrr@5"]
    assert better["gate"]["checks"][0]["observed"] == found["relative"]
    manifest = json.loads((run_folder / "store/runs/small/steps/evaluate.json").read_text())
    assert manifest["summary"]["test"] == better["judged"]["means"]

    # The same grades on validation, the opposite ones on test.
    of_base = only_first_of("base", "iteration-1", "test", ranked)
    flipped = report_by(run_folder, umpire, "flips-on-test", val | of_base)
    assert flipped["chosen"] == better["chosen"]
    assert [row["reason"] for row in flipped["candidates"]] == [row["reason"] for row in better["candidates"]]
    assert flipped["judged"]["means"]["iteration-1"]["mrr@5"] < flipped["judged"]["means"]["base"]["mrr@5"]
    assert flipped["verdict"].startswith("Not confirmed: ")
    assert flipped["means"]["test"]["base"] == better["means"]["test"]["base"], "known answers are the same"


@pytest.mark.slow
def test_a_killed_step_resumes_and_pays_nothing_twice(run_folder: Path, umpire: Umpire) -> None:
    umpire.models, umpire.delay = ["slow"], 0.1
    urls = f"resources.evaluate_judge_urls=[{umpire.url}]"
    settings = ("assess", "small.yaml", "evaluate.judge.model=slow", urls, "resources.judge_concurrency=2")
    process = subprocess.Popen(
        [sys.executable, "-m", "pyrite", *settings],
        cwd=run_folder,
        env={**os.environ, "PYRITE_STORE": "store"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    cache = run_folder / "store/judgments" / fingerprint("slow", load_prompt("general"))
    deadline = time.monotonic() + 90
    while not list(cache.rglob("*.parquet")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    before = umpire.settled().graded.total()

    umpire.delay = 0
    result = call(run_folder, *settings[:1], *settings[2:])
    assert result.returncode == 0, result.stderr
    summary = json.loads((run_folder / "store/runs/small/steps/assess.json").read_text())["summary"]
    assert 1 <= summary["cached"] <= before
    assert umpire.graded.total() - summary["pairs"] == before - summary["cached"], "only unflushed pairs are repeated"
    assert summary["judged"] == summary["pairs"]
    assert summary["missing"] == 0
    assert "nothing to do" in call(run_folder, *settings[:1], *settings[2:]).stdout


def test_errors_name_the_settings_of_the_second_judge(run_folder: Path, umpire: Umpire) -> None:
    refused = call(run_folder, "check", "resources.evaluate_judge_urls=[]")
    assert refused.returncode == 2
    assert "evaluate.judge has no server" in refused.stderr

    settings = ("assess", "--force", f"resources.evaluate_judge_urls=[{umpire.url}]", "evaluate.judge.model=other")
    umpire.models, umpire.key = ["other"], "another"
    refused = call(run_folder, *settings, PYRITE_JUDGE_API_KEY=KEY)
    assert refused.returncode == 2
    assert "Set PYRITE_EVALUATE_JUDGE_API_KEY, or set resources.evaluate_judge_key_file" in refused.stderr
    assert "Incorrect API key provided: None" in refused.stderr, "the training judge's key was sent"

    umpire.key, umpire.fault = KEY, lambda _number, _pair: "banana"
    stopped = call(run_folder, *settings, PYRITE_EVALUATE_JUDGE_API_KEY=KEY)
    assert stopped.returncode == 1
    assert "more than evaluate.judge.max_missing (2%) allows" in " ".join(stopped.stderr.split())
    assert "Traceback" not in stopped.stderr
