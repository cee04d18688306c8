"""Questions for a corpus that has none, through the command line, against a server that writes them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pyrite.generation import filters
from pyrite.generation.dedup import NEARLY_SAME, SAME
from pyrite.stages.answerable import NOT_ANSWERED, NOT_GRADED
from pyrite.stages.generate import NO_ANSWER
from small_data import KINDS, TOPICS
from stub_judge import MODEL, grade
from stub_writer import Writer

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def writer() -> Iterator[Writer]:
    with Writer() as server:
        yield server


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """60 documents on 20 topics, as JSONL: the answers of the small data set, without its questions."""
    path = tmp_path / "documents.jsonl"
    rows = [
        {"text": answer.format(topic, f"{topic[:4]}{number}", f"{topic[-3:]}{kind[:3]}"), "topic": topic}
        for number, topic in enumerate(TOPICS)
        for kind, (_, answer) in KINDS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, documents: Path, writer: Writer) -> Path:
    """A run on documents alone, judged by labels, that takes seconds."""
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""\
source: {{kind: documents, path: {documents}, topic: topic}}
model: {{base: {tiny_model}}}
iterations: 1
prepare: {{min_chars: 40, max_chars: 400}}
generate: {{queries: 50, share_from_passages: 1, model: {MODEL}}}
retrieve: {{range_max: 20}}
mine: {{num_negatives: 2, relative_margin: null}}
finetune: {{batch_size: 8, learning_rate: 1.0e-3}}
evaluate: {{blends: [], resamples: 200}}
resources: {{judge_urls: ["{writer.url}"]}}
"""
    )
    return path


LLM_JUDGE = ("judge.kind=llm", f"judge.model={MODEL}", "generate.share_from_passages=0.5")


def made(run: Path, name: str = "generated") -> list[dict[str, Any]]:
    return [
        row for path in sorted((run / "queries").glob(f"{name}-0*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def summaries(run: Path, step: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text())["summary"] for path in sorted((run / "steps").glob(f"{step}*.json"))]


def digests(run: Path, step: str) -> dict[str, str]:
    manifests = [json.loads(path.read_text()) for path in sorted((run / "steps").glob(f"{step}*.json"))]
    return {entry["key"]: entry["sha256"] for manifest in manifests for entry in manifest["outputs"]}


@pytest.mark.slow
def test_a_whole_run_on_documents_alone(pyrite: Pyrite, run_file: Path, tmp_path: Path, writer: Writer) -> None:
    # The first question of each shard is the same one, which both keep and a reader of both takes once.
    writer.replies = lambda number: "What is good for everybody all the time?" if number in (1, 26) else None
    result = pyrite("train", run_file, "resources.judge_workers=1")
    assert result.returncode == 0, result.stderr + result.stdout
    assert "cannot grade new questions" in result.stdout
    run = tmp_path / "store/runs/small"
    passages = {row["passage_id"]: row for row in pq.read_table(run / "corpus/passages.parquet").to_pylist()}
    questions = {row["query_id"]: row for row in made(run)}
    qrels = made(run, "generated-qrels")
    assert writer.written.total() == 50
    assert len(made(run)) == 50
    assert len(questions) == 49
    assert {row["query_id"] for row in qrels} == set(questions)
    topics: dict[str, set[str]] = {}
    for row in qrels:
        question, passage = questions[row["query_id"]], passages[row["passage_id"]]
        if "everybody" not in question["text"]:
            assert question["split"] == passage["split"]
            assert question["topic"] == passage["parents"][0]["topic"]
        topics.setdefault(question["split"], set()).add(question["topic"])
    assert topics.keys() == {"train", "val", "test"}
    assert not topics["train"] & (topics["val"] | topics["test"])
    shares = Counter(row["split"] for row in questions.values())
    assert shares["val"] <= shares["test"] + 1
    assert shares["train"] > 2 * shares["val"]
    report = json.loads((run / "report/report.json").read_text())
    counted = {row["split"]: row["queries"] for row in report["data"]["splits"]}
    assert sum(counted.values()) == 49
    assert report["means"]["test"]["iteration-1"]["mrr@5"] > 0
    (prepared,) = summaries(run, "prepare")
    assert sum(prepared["passage_splits"].values()) == len(passages)
    assert prepared["queries"] == {"train": 0, "val": 0, "test": 0}
    # All is kept: another run asks nothing, and makes the same tables.
    again = pyrite("generate", run_file, "name=other", "--shard", 0)
    assert again.returncode == 2
    assert "prepare" in again.stderr
    for verb in (["prepare"], ["generate", "--shard", 0], ["generate", "--shard", 1]):
        result = pyrite(*verb, run_file, "name=other")
        assert result.returncode == 0, result.stderr
    assert writer.written.total() == 50
    assert digests(tmp_path / "store/runs/other", "generate") == digests(run, "generate")


@pytest.mark.slow
def test_with_an_llm_judge_half_is_checked_and_half_is_tied_to_no_passage(
    pyrite: Pyrite, run_file: Path, tmp_path: Path, writer: Writer
) -> None:
    result = pyrite("train", run_file, *LLM_JUDGE)
    assert result.returncode == 0, result.stderr + result.stdout
    run = tmp_path / "store/runs/small"
    tied = {row["query_id"] for row in made(run, "generated-qrels")}
    free = [row for row in made(run) if row["query_id"] not in tied]
    assert {row["split"] for row in free} == {"train"}
    assert len(free) == 25
    own = {row["query_id"]: row["passage_id"] for row in made(run, "generated-qrels")}
    texts = {row["passage_id"]: row["text"] for row in pq.read_table(run / "corpus/passages.parquet").to_pylist()}
    asked = {row["query_id"]: row["text"] for row in made(run)}
    assert all(grade((asked[query], texts[passage])) >= 3 for query, passage in own.items())
    dropped: Counter[str] = Counter()
    for summary in summaries(run, "generate"):
        dropped.update(summary["dropped"])
    assert dropped[NOT_ANSWERED] == 25 - len(own) > 0
    # Examples come from training alone: never a question that is held out.
    training = {row["text"] for row in made(run) if row["split"] == "train"}
    held_out = {row["text"] for row in made(run)} - training
    assert held_out
    assert all(set(shown) <= training for shown in writer.shown)
    # What the judge said of a question's own passage is not asked again when that passage is a candidate.
    judged = summaries(run, "judge-1")
    candidates = pq.read_table(run / "iterations/1/candidates.parquet").to_pylist()
    known = sum(own.get(row["query_id"]) == row["passage_id"] for row in candidates)
    assert sum(summary["cached"] for summary in judged) == known > 0
    assert max(writer.answered.values()) == 1
    report = json.loads((run / "report/report.json").read_text())
    assert sum(row["queries"] for row in report["data"]["splits"]) == len(asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "during"),
    [(signal.SIGKILL, "passages"), (signal.SIGKILL, "examples"), (signal.SIGTERM, "passages")],
)
def test_killed_in_the_middle_it_asks_nothing_twice_that_was_kept(
    ending: signal.Signals, during: str, pyrite: Pyrite, run_file: Path, tmp_path: Path, writer: Writer
) -> None:
    shard = ("generate", run_file, "--shard", "0", *LLM_JUDGE, "generate.queries=100", "resources.judge_concurrency=1")
    undisturbed = str(tmp_path / "undisturbed")
    for verb in (("prepare", run_file), shard):
        assert pyrite(*verb, PYRITE_STORE=undisturbed).returncode == 0
    usual = writer.written.total()
    assert usual == 50
    for counts in (writer.written, writer.answered, writer.shown):
        counts.clear()
    assert pyrite("prepare", run_file).returncode == 0

    writer.pause = 0.25
    process = subprocess.Popen(
        [sys.executable, "-m", "pyrite", *map(str, shard)],
        cwd=tmp_path,
        env={**os.environ, "PYRITE_STORE": str(tmp_path / "store")},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (writer.shown if during == "examples" else list((tmp_path / "store/generated").rglob("*.parquet"))):
        assert time.monotonic() < deadline, "nothing was ever kept"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    time.sleep(0.5)  # some more, which a SIGKILL loses
    process.send_signal(ending)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if ending == signal.SIGKILL else 143), said
    assert not (tmp_path / "store/runs/small/steps/generate.0.json").exists()
    found = list((tmp_path / "store/generated").rglob("*.parquet"))
    kept = {key for path in found for key in pq.read_table(path)["key"].to_pylist()}
    before = writer.written.copy()
    assert len(kept) < usual
    assert bool(writer.shown) == (during == "examples")
    assert len(kept) >= (25 if during == "examples" else 1)  # examples build on what was made from passages: all kept
    lost = before.keys() - kept
    # One was under way. SIGTERM loses nothing else; SIGKILL loses what came after the last part.
    assert len(lost) <= 1 if ending == signal.SIGTERM else len(lost) >= 1

    writer.pause = 0.0
    after = pyrite(*shard)
    assert after.returncode == 0, after.stderr
    assert writer.written.keys() >= kept
    assert all(writer.written[key] == 1 for key in kept)
    assert writer.written.total() == usual + len(lost)
    assert max(writer.answered.values()) == 1
    assert digests(tmp_path / "store/runs/small", "generate") == digests(
        tmp_path / "undisturbed/runs/small", "generate"
    )
    (merged,) = (tmp_path / "store/generated").rglob("*.parquet")
    assert len(pq.read_table(merged)) == usual
    assert "already finished" in pyrite(*shard).stdout


RUBBISH = {
    "Gout is a disease.": filters.NOT_A_QUESTION,
    "\n": filters.EMPTY,
    "Why?": filters.TOO_SHORT,
    "Is it " + "so " * 60 + "?": filters.TOO_LONG,
    "What is said in the passage on this?": filters.POINTS_AT_PASSAGE,
}


@pytest.mark.slow
def test_rubbish_is_counted_by_its_reason_and_what_is_left_is_used(
    pyrite: Pyrite, run_file: Path, tmp_path: Path, writer: Writer
) -> None:
    bad = list(RUBBISH)
    same = {
        11: "Where does all of it come from?",
        12: "where does  all of it come from?",
        13: "Where did it all come from?",
    }
    writer.replies = lambda number: bad[number % len(bad)] if number <= 10 else same.get(number)
    writer.statuses = lambda number: 500 if 14 <= number < 14 + 6 else 200
    one = ("generate.shards=1", "resources.judge_concurrency=1")
    assert pyrite("prepare", run_file, *one).returncode == 0
    result = pyrite("generate", run_file, "--shard", 0, *one)
    assert result.returncode == 0, result.stderr
    (summary,) = summaries(tmp_path / "store/runs/small", "generate")
    dropped = summary["dropped"]
    assert {reason: dropped[reason] for reason in RUBBISH.values()} == dict.fromkeys(RUBBISH.values(), 2)
    assert dropped[NO_ANSWER] == 1
    # The same question on passages of one split is one that knows them; of two splits, the training one.
    assert dropped.get(SAME, 0) + dropped.get(NEARLY_SAME, 0) == 2
    assert summary["questions"] + sum(dropped.values()) == summary["requested"] == 50
    assert f"{summary['questions']} questions of 50 asked for" in re.sub(r"\s+", " ", result.stdout)


@pytest.mark.slow
def test_nothing_left_or_no_server_is_an_error_that_says_why(
    pyrite: Pyrite, run_file: Path, tmp_path: Path, writer: Writer
) -> None:
    assert pyrite("prepare", run_file).returncode == 0
    writer.replies = lambda _: "Gout is a disease."
    result = pyrite("generate", run_file, "--shard", 0)
    assert result.returncode == 2
    assert f"{filters.NOT_A_QUESTION}: 25, such as 'Gout is a disease.'" in result.stderr
    assert "generate.prompt" in result.stderr
    assert "Traceback" not in result.stderr
    assert not made(tmp_path / "store/runs/small")
    assert pyrite("prepare", run_file, "seed=1").returncode == 0
    for wrong, told in (
        ("resources.judge_urls=[]", "judge_urls is empty"),
        ("generate.model=nobody", "does not exist"),
        ("generate.prompt=nowhere.yaml", "nowhere.yaml"),
        ("generate.share_from_passages=0.5", "no known passage"),
        ("generate.model=null", "generate.model"),
    ):
        result = pyrite("generate", run_file, wrong, "seed=1", "--shard", 0)
        assert result.returncode == 2, (wrong, result.stdout)
        assert told in result.stderr, wrong
        assert "Traceback" not in result.stderr
    without = pyrite("prepare", run_file, "generate=null", "--force")
    assert without.returncode == 2
    assert "no query has a relevant passage" in without.stderr
    assert "set generate" in without.stderr


def test_a_judge_that_fails_stops_the_shard_and_drops_no_question(
    pyrite: Pyrite, run_file: Path, tmp_path: Path, writer: Writer
) -> None:
    """The bug: questions that nobody could grade are dropped for good, and the step is done."""
    shard = ("generate", run_file, "--shard", 0, *LLM_JUDGE)
    assert pyrite("prepare", run_file).returncode == 0
    writer.fault = lambda _number, _pair: "banana"
    result = pyrite(*shard)
    assert result.returncode == 1
    assert writer.faults["banana"] >= 6
    assert "pairs could not be graded, more than judge.max_missing" in " ".join(result.stderr.split())
    writer.fault = lambda _number, _pair: None
    asked = writer.written.copy()
    assert pyrite(*shard).returncode == 0
    assert not any(writer.written[key] > times for key, times in asked.items()), "its questions were kept"
    assert NOT_GRADED not in summaries(tmp_path / "store/runs/small", "generate")[0]["dropped"]


@pytest.mark.slow
def test_a_data_set_with_questions_gets_more_for_training_and_keeps_its_own_measure(
    pyrite: Pyrite, run_file: Path, questions: Path, tmp_path: Path, writer: Writer
) -> None:
    plain = run_file.read_text().replace(f"path: {tmp_path / 'documents.jsonl'}", f"path: {questions}")
    run_file.write_text(plain.replace("kind: documents", "kind: jsonl"))
    asked_already = "How is gout treated?"
    writer.replies = lambda number: asked_already if number <= 2 else None
    result = pyrite("prepare", run_file)
    assert result.returncode == 0, result.stderr
    for shard in (0, 1):
        assert pyrite("generate", run_file, "--shard", shard).returncode == 0
    result = pyrite("evaluate", run_file, "-i", 0)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "store/runs/small"
    own = pq.read_table(run / "queries/queries.parquet").to_pylist()
    assert {row["split"] for row in made(run)} == {"train"}
    assert asked_already not in {row["text"] for row in made(run)}
    dropped = [summary["dropped"] for summary in summaries(run, "generate")]
    assert sum(each.get(SAME, 0) for each in dropped) == 2
    scored = pq.read_table(run / "iterations/0/metrics/val.parquet")["query_id"].to_pylist()
    assert set(scored) == {row["query_id"] for row in own if row["split"] == "val"}
