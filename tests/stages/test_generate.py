"""The stage generate, through the command line, against a stub server that writes questions."""

import asyncio
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

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyrite import tables
from pyrite.generation import filters
from pyrite.generation.filters import DUPLICATE, NEAR_DUPLICATE
from pyrite.generation.questions import GeneratedQuestion
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import RunSpec
from pyrite.stages.answerable import NOT_ANSWERED, NOT_GRADED, OwnPassages
from pyrite.stages.context import StepContext
from pyrite.stages.generate import NO_REPLY
from pyrite.store import open_store
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
    """60 documents about 20 topics, as JSONL: the answers of the small data set, without its questions."""
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
    """A run on documents without queries, judged by labels, that takes seconds."""
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


def generated(run: Path, name: str = "generated") -> list[dict[str, Any]]:
    return [
        row for path in sorted((run / "queries").glob(f"{name}-0*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def summaries(run: Path, step: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text())["summary"] for path in sorted((run / "steps").glob(f"{step}*.json"))]


def digests(run: Path, step: str) -> dict[str, str]:
    manifests = [json.loads(path.read_text()) for path in sorted((run / "steps").glob(f"{step}*.json"))]
    return {entry["key"]: entry["sha256"] for manifest in manifests for entry in manifest["outputs"]}


@pytest.mark.slow
def test_run_on_documents_without_queries(pyrite: Pyrite, run_file: Path, tmp_path: Path, writer: Writer) -> None:
    # The first question of both shards is the same: each shard stores it, and readers deduplicate.
    writer.replies = lambda number: "What is good for everybody all the time?" if number in (1, 26) else None
    result = pyrite("train", run_file, "resources.judge_workers=1")
    assert result.returncode == 0, result.stderr + result.stdout
    assert "cannot grade generated questions" in " ".join(result.stdout.split())
    run = tmp_path / "store/runs/small"
    passages = {row["passage_id"]: row for row in pq.read_table(run / "corpus/passages.parquet").to_pylist()}
    questions = {row["query_id"]: row for row in generated(run)}
    qrels = generated(run, "generated-qrels")
    assert writer.written.total() == 50
    assert len(generated(run)) == 50
    assert len(questions) == 49
    assert {row["query_id"] for row in qrels} == set(questions)
    topics: dict[str, set[str]] = {}
    for row in qrels:
        question, passage = questions[row["query_id"]], passages[row["passage_id"]]
        if "everybody" not in question["text"]:
            assert question["split"] == passage["split"]
            assert question["topic"] == passage["parents"][0]["topic"]
            assert question["group"] == passage["group"] is not None
        topics.setdefault(question["split"], set()).add(question["topic"])
    assert topics.keys() == {"train", "val", "test"}
    assert not topics["train"] & (topics["val"] | topics["test"])
    shares = Counter(row["split"] for row in questions.values())
    assert shares["val"] <= shares["test"] + 1
    assert shares["train"] > 2 * shares["val"]
    report = json.loads((run / "report/report.json").read_text())
    counted = {row["split"]: row["queries"] for row in report["data"]["splits"]}
    assert sum(counted.values()) == 49
    group_of = {cluster: questions[query]["group"] for query, cluster in report["clusters"].items()}
    assert all(questions[query]["group"] == group_of[cluster] for query, cluster in report["clusters"].items())
    assert len(set(group_of.values())) == len(group_of)
    assert report["means"]["test"]["iteration-1"]["mrr@5"] > 0
    (prepared,) = summaries(run, "prepare")
    assert sum(prepared["passage_splits"].values()) == len(passages)
    assert prepared["queries"] == {"train": 0, "val": 0, "test": 0}
    # All replies are saved: another run sends no request, and writes the same tables.
    unprepared = pyrite("generate", run_file, "name=other", "--shard", 0)
    assert unprepared.returncode == 2
    assert "prepare" in unprepared.stderr
    for verb in (["prepare"], ["generate", "--shard", 0], ["generate", "--shard", 1]):
        result = pyrite(*verb, run_file, "name=other")
        assert result.returncode == 0, result.stderr
    assert writer.written.total() == 50
    assert digests(tmp_path / "store/runs/other", "generate") == digests(run, "generate")


@pytest.mark.slow
def test_llm_judge_grades_the_questions_from_passages(
    pyrite: Pyrite, run_file: Path, tmp_path: Path, writer: Writer
) -> None:
    result = pyrite("train", run_file, *LLM_JUDGE)
    assert result.returncode == 0, result.stderr + result.stdout
    run = tmp_path / "store/runs/small"
    linked = {row["query_id"] for row in generated(run, "generated-qrels")}
    few_shot = [row for row in generated(run) if row["query_id"] not in linked]
    assert {row["split"] for row in few_shot} == {"train"}
    assert len(few_shot) == 25
    own = {row["query_id"]: row["passage_id"] for row in generated(run, "generated-qrels")}
    texts = {row["passage_id"]: row["text"] for row in pq.read_table(run / "corpus/passages.parquet").to_pylist()}
    questions = {row["query_id"]: row["text"] for row in generated(run)}
    assert all(grade((questions[query], texts[passage])) >= 3 for query, passage in own.items())
    dropped: Counter[str] = Counter()
    for summary in summaries(run, "generate"):
        dropped.update(summary["dropped"])
    assert dropped[NOT_ANSWERED] == 25 - len(own) > 0
    # Every accepted training question is used: its own passage is its positive, even if the judge grades it 3.
    train = {row["query_id"] for row in generated(run) if row["split"] == "train"}
    training_own = {query: passage for query, passage in own.items() if query in train}
    examples = pq.read_table(run / "iterations/1/examples.parquet").to_pylist()
    mined = {row["query_id"]: row["positive_id"] for row in examples}
    assert training_own.items() <= mined.items()
    assert 3 in {grade((questions[query], texts[passage])) for query, passage in training_own.items()}
    (mining,) = summaries(run, "mine-1")
    assert (mining["known_positives"], mining["judged_positives"]) == (
        len(training_own),
        len(mined) - len(training_own),
    )
    # Examples are training questions only, never held-out ones.
    training = {row["text"] for row in generated(run) if row["split"] == "train"}
    held_out = {row["text"] for row in generated(run)} - training
    assert held_out
    assert all(set(shown) <= training for shown in writer.shown)
    # The grade of a question's own passage is reused when that passage is a candidate.
    judged = summaries(run, "judge-1")
    candidates = pq.read_table(run / "iterations/1/candidates.parquet").to_pylist()
    own_candidates = sum(own.get(row["query_id"]) == row["passage_id"] for row in candidates)
    assert sum(summary["cached"] for summary in judged) == own_candidates > 0
    assert max(writer.graded.values()) == 1
    report = json.loads((run / "report/report.json").read_text())
    assert sum(row["queries"] for row in report["data"]["splits"]) == len(questions)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop_signal", "phase"),
    [(signal.SIGKILL, "passages"), (signal.SIGKILL, "examples"), (signal.SIGTERM, "passages")],
)
def test_stopped_shard_repeats_no_request_with_a_saved_reply(
    stop_signal: signal.Signals, phase: str, pyrite: Pyrite, run_file: Path, tmp_path: Path, writer: Writer
) -> None:
    shard = ("generate", run_file, "--shard", "0", *LLM_JUDGE, "generate.queries=100", "resources.judge_concurrency=1")
    undisturbed = str(tmp_path / "undisturbed")
    for verb in (("prepare", run_file), shard):
        assert pyrite(*verb, PYRITE_STORE=undisturbed).returncode == 0
    expected = writer.written.total()
    assert expected == 50
    for counts in (writer.written, writer.graded, writer.shown):
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
    while not (writer.shown if phase == "examples" else list((tmp_path / "store/generated").rglob("*.parquet"))):
        assert time.monotonic() < deadline, "no reply was saved"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    time.sleep(0.5)  # receive more replies, which SIGKILL loses
    process.send_signal(stop_signal)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if stop_signal == signal.SIGKILL else 143), stderr
    assert not (tmp_path / "store/runs/small/steps/generate.0.json").exists()
    files = list((tmp_path / "store/generated").rglob("*.parquet"))
    saved = {key for path in files for key in pq.read_table(path)["key"].to_pylist()}
    before = writer.written.copy()
    assert len(saved) < expected
    assert bool(writer.shown) == (phase == "examples")
    # All questions from passages are saved before examples are used.
    assert len(saved) >= (25 if phase == "examples" else 1)
    lost = before.keys() - saved
    # SIGTERM loses only the request in flight; SIGKILL loses all replies since the last flush.
    assert len(lost) <= 1 if stop_signal == signal.SIGTERM else len(lost) >= 1

    writer.pause = 0.0
    result = pyrite(*shard)
    assert result.returncode == 0, result.stderr
    assert writer.written.keys() >= saved
    assert all(writer.written[key] == 1 for key in saved)
    assert writer.written.total() == expected + len(lost)
    assert max(writer.graded.values()) == 1
    assert digests(tmp_path / "store/runs/small", "generate") == digests(
        tmp_path / "undisturbed/runs/small", "generate"
    )
    (merged,) = (tmp_path / "store/generated").rglob("*.parquet")
    assert len(pq.read_table(merged)) == expected
    assert "already finished" in pyrite(*shard).stdout


UNUSABLE = {
    "Gout is a disease.": filters.NOT_A_QUESTION,
    "**": filters.EMPTY,
    "Why?": filters.TOO_SHORT,
    "Is it " + "so " * 60 + "?": filters.TOO_LONG,
    "What is said in the passage about this?": filters.MENTIONS_PASSAGE,
}


@pytest.mark.slow
def test_unusable_replies_are_counted_by_reason(pyrite: Pyrite, run_file: Path, tmp_path: Path, writer: Writer) -> None:
    unusable = list(UNUSABLE)
    duplicates = {
        11: "Where does all of it come from?",
        12: "where does  all of it come from?",
        13: "Where did it all come from?",
    }
    writer.replies = lambda number: unusable[number % len(unusable)] if number <= 10 else duplicates.get(number)
    writer.statuses = lambda number: 500 if 14 <= number < 14 + 6 else 200
    settings = ("generate.shards=1", "resources.judge_concurrency=1")
    assert pyrite("prepare", run_file, *settings).returncode == 0
    result = pyrite("generate", run_file, "--shard", 0, *settings)
    assert result.returncode == 0, result.stderr
    (summary,) = summaries(tmp_path / "store/runs/small", "generate")
    dropped = summary["dropped"]
    assert {reason: dropped[reason] for reason in UNUSABLE.values()} == dict.fromkeys(UNUSABLE.values(), 2)
    assert dropped[NO_REPLY] == 1
    # Duplicates within a split merge; across splits the training question stays.
    assert dropped.get(DUPLICATE, 0) + dropped.get(NEAR_DUPLICATE, 0) == 2
    assert summary["questions"] + sum(dropped.values()) == summary["requested"] == 50
    assert f"{summary['questions']} queries of 50 requested" in re.sub(r"\s+", " ", result.stdout)


@pytest.mark.slow
def test_no_usable_question_or_wrong_settings_are_explained(
    pyrite: Pyrite, run_file: Path, tmp_path: Path, writer: Writer
) -> None:
    assert pyrite("prepare", run_file).returncode == 0
    writer.replies = lambda _: "Gout is a disease."
    result = pyrite("generate", run_file, "--shard", 0)
    assert result.returncode == 2
    assert f"{filters.NOT_A_QUESTION}: 25, such as 'Gout is a disease.'" in result.stderr
    assert "generate.prompt" in result.stderr
    assert "Traceback" not in result.stderr
    assert not generated(tmp_path / "store/runs/small")
    assert pyrite("prepare", run_file, "seed=1").returncode == 0
    for setting, error in (
        ("resources.judge_urls=[]", "judge_urls is empty"),
        ("generate.model=unknown", "does not exist"),
        ("generate.prompt=missing.yaml", "missing.yaml"),
        ("generate.share_from_passages=0.5", "no known passage"),
        ("generate.model=null", "generate.model"),
    ):
        result = pyrite("generate", run_file, setting, "seed=1", "--shard", 0)
        assert result.returncode == 2, (setting, result.stdout)
        assert error in result.stderr, setting
        assert "Traceback" not in result.stderr
    disabled = pyrite("prepare", run_file, "generate=null", "--force")
    assert disabled.returncode == 2
    assert "no query has a relevant passage" in disabled.stderr
    assert "set generate" in disabled.stderr


def test_failing_judge_stops_the_shard_and_drops_no_question(
    pyrite: Pyrite, run_file: Path, tmp_path: Path, writer: Writer
) -> None:
    """Regression: questions without a grade were dropped, and the step finished."""
    shard = ("generate", run_file, "--shard", 0, *LLM_JUDGE)
    assert pyrite("prepare", run_file).returncode == 0
    writer.fault = lambda _number, _pair: "banana"
    result = pyrite(*shard)
    assert result.returncode == 1
    assert writer.faults["banana"] >= 6
    assert "pairs could not be graded, more than judge.max_missing" in " ".join(result.stderr.split())
    writer.fault = lambda _number, _pair: None
    before = writer.written.copy()
    assert pyrite(*shard).returncode == 0
    assert not any(writer.written[key] > times for key, times in before.items()), "a saved reply was requested again"
    assert NOT_GRADED not in summaries(tmp_path / "store/runs/small", "generate")[0]["dropped"]


def test_no_question_is_generated_from_a_near_duplicate(
    pyrite: Pyrite, run_file: Path, documents: Path, tmp_path: Path
) -> None:
    text = " ".join(f"Sentence {number} is the same on many pages." for number in range(8))
    rows = [{"text": f"{text} Page {number}.", "topic": f"page {number}"} for number in range(20)]
    documents.write_text(documents.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    for verb in (["prepare"], ["generate", "--shard", 0]):
        result = pyrite(*verb, run_file, "generate.queries=200", "generate.shards=1")
        assert result.returncode == 0, result.stderr
    run = tmp_path / "store/runs/small"
    passages = pq.read_table(run / "corpus/passages.parquet").to_pylist()
    marked = {row["passage_id"] for row in passages if row["near_duplicate"]}
    assert len(marked) == 20
    sources = {row["passage_id"] for row in generated(run, "generated-qrels")}
    assert sources
    assert not sources & marked


def test_no_question_is_generated_from_boilerplate(
    pyrite: Pyrite, run_file: Path, documents: Path, tmp_path: Path
) -> None:
    own, same = "The page number {} has some words of its own, unlike the others.", "It replaces no visit to a doctor."
    rows = [{"text": f"{own.format(n)} This page informs only, and {same}", "topic": f"T{n}"} for n in range(30)]
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ("prepare.min_chars=50", "prepare.max_chars=80")
    for verb in (["prepare"], ["generate", "--shard", 0]):
        result = pyrite(*verb, run_file, *sizes, "generate.queries=200", "generate.shards=1")
        assert result.returncode == 0, result.stderr
    run = tmp_path / "store/runs/small"
    passages = pq.read_table(run / "corpus/passages.parquet").to_pylist()
    assert sum(row["boilerplate"] for row in passages) == 1
    sources = {row["passage_id"] for row in generated(run, "generated-qrels")}
    assert sources == {row["passage_id"] for row in passages if not row["boilerplate"]}


def test_another_training_seed_uses_the_same_questions(
    pyrite: Pyrite, run_file: Path, tmp_path: Path, writer: Writer
) -> None:
    found = []
    for seed in (1, 2):
        for verb in (["prepare"], ["generate", "--shard", 0]):
            settings = ("generate.queries=20", "generate.shards=1", "prepare.seed=0", f"seed={seed}")
            result = pyrite(*verb, run_file, *settings)
            assert result.returncode == 0, result.stderr
        found.append(generated(tmp_path / "store/runs/small"))
    assert found[0] == found[1]
    assert writer.written.total() == 20


@pytest.mark.slow
def test_own_queries_get_only_training_questions_added(
    pyrite: Pyrite, run_file: Path, questions: Path, tmp_path: Path, writer: Writer
) -> None:
    text = run_file.read_text().replace(f"path: {tmp_path / 'documents.jsonl'}", f"path: {questions}")
    run_file.write_text(text.replace("kind: documents", "kind: jsonl"))
    existing = "How is gout treated?"
    writer.replies = lambda number: existing if number <= 2 else None
    result = pyrite("prepare", run_file)
    assert result.returncode == 0, result.stderr
    for shard in (0, 1):
        assert pyrite("generate", run_file, "--shard", shard).returncode == 0
    assert pyrite("embed", run_file, "-i", 0, "--shard", 0).returncode == 0
    result = pyrite("validate", run_file, "-i", 0)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "store/runs/small"
    own_queries = pq.read_table(run / "queries/queries.parquet").to_pylist()
    assert {row["split"] for row in generated(run)} == {"train"}
    assert existing not in {row["text"] for row in generated(run)}
    dropped = [summary["dropped"] for summary in summaries(run, "generate")]
    assert sum(each.get(DUPLICATE, 0) for each in dropped) == 2
    scored = pq.read_table(run / "iterations/0/metrics/val.parquet")["query_id"].to_pylist()
    assert set(scored) == {row["query_id"] for row in own_queries if row["split"] == "val"}


def test_a_question_that_was_generated_twice_is_checked_once(tmp_path: Path) -> None:
    rows = [{"passage_id": "c", "text": "Gout is painful.", "context": "", "parents": []}]
    question = GeneratedQuestion("What is gout?", "train", "", "", ("c",), ("c",))
    with Writer() as server:
        spec = RunSpec.model_validate(
            {
                "name": "r",
                "source": {"kind": "sample"},
                "judge": {"kind": "llm", "model": MODEL},
                "generate": {"model": MODEL, "answerable_grade": 3},
                "resources": {"judge_urls": [server.url]},
            }
        )
        store, step = open_store(str(tmp_path)), Step("generate", None, 0)
        ctx = StepContext(spec, step, store, "runs/r", {}, "runs/r/scratch", NullProgress())
        passages = pa.Table.from_pylist(rows, tables.PASSAGES)
        reasons = asyncio.run(OwnPassages(ctx).grade([question, question], passages))
        assert server.graded.total() == 1
    assert len(reasons) == 2
