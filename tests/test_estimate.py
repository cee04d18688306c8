"""The estimate of a run with generated questions, against values computed by hand."""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyrite.config import load
from pyrite.costs import DEFAULT_MACHINE, machine
from pyrite.embedding.models import Size
from pyrite.estimate import Estimate, StageEstimate, estimate
from pyrite.estimate.speed import Speed, measure_speed
from pyrite.estimate.workload import workload_of
from pyrite.executors.step import Run, open_run, run_step
from pyrite.judges.llm import fingerprint
from pyrite.judges.prompt import load_prompt
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.store import open_store
from pyrite.training import rehearsal
from stub_judge import MODEL, Pair, Stub

#: A machine that encodes 55,000 characters a second and trains on 15,000.
SPEED = Speed(per_encoded=1 / 55_000, per_encoded_float32=1 / 20_000, per_trained=1 / 15_000, per_compared=1e-8)

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


class GeneratorStub(Stub):
    """A server whose LLM generates a different question for every seed."""

    def _completion(self, body: dict[str, Any], pair: Pair | None, length: int) -> dict[str, Any]:
        reply = super()._completion(body, pair, length)
        if "seed" in body:
            reply["choices"][0]["message"]["content"] = f"What is known of thing number {body['seed']}?"
        return reply


@pytest.fixture
def server() -> Iterator[GeneratorStub]:
    with GeneratorStub() as stub:
        yield stub


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, server: GeneratorStub) -> Path:
    """100 documents of one passage of 840 characters each: 200 tokens at 4.2 characters."""
    rows = [{"text": f"{number:03d} " + "thing " * 139 + ".."} for number in range(100)]
    assert {len(row["text"]) for row in rows} == {840}
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""\
source: {{kind: documents, path: {tmp_path / "documents.jsonl"}}}
model: {{base: {tiny_model}}}
generate: {{queries: 40000, share_from_passages: 0.5}}
judge: {{kind: llm, model: {MODEL}, rank_window: 10}}
resources: {{judge_urls: ["{server.url}"]}}
"""
    )
    return path


def estimated(run_file: Path, tmp_path: Path, *words: str) -> Estimate:
    return estimate(opened(run_file, tmp_path, *words), here=SPEED)


def opened(run_file: Path, tmp_path: Path, *words: str) -> Run:
    return open_run(load(run_file, words), open_store(str(tmp_path / "store")))


@pytest.mark.parametrize("verb", [["estimate"], ["train", "--dry-run"]], ids=lambda verb: verb[0])
def test_estimate_includes_questions_to_be_generated(pyrite: Pyrite, run_file: Path, verb: list[str]) -> None:
    # 100 passages give one question each, 70 of them for training; 20,000 more are generated from examples.
    prompt = 100 * (150 + 200) + 20_000 * (150 + 5 * 20) + 100 * (350 + 200 + 24)
    seconds = (100 * 224 + 20_000 * 250 + 100 * 574) / 9600 + 20_100 * 20 / 6000
    pairs = (20_070 * 10 + 70) * 2  # the first ranks, and a question's own passage whatever its rank
    result = pyrite(*verb, run_file)
    assert result.returncode == 0, result.stderr
    output = " ".join(result.stdout.split())
    assert "at most 20,070 training queries (20,070 of them not generated yet; filters drop some)" in output
    assert "at most 20,200 LLM calls (20,100 for a question and 100 checks" in output
    assert f"{prompt:,} prompt tokens and {20_100 * 20:,} generated" in output
    assert f"about {seconds / 60:.0f} minutes and {seconds / 3600 * 5.672:.2f} dollars on 1 x g5.12xlarge" in output
    if verb == ["estimate"]:
        assert f"{pairs:,} at most" in output, "questions that are not generated yet count too"
    else:
        assert f"generate, shard 1 to do {3 + seconds / 2:,.0f} s" in output
        judging = (pairs * 224 + 20_070 * 2 * 350) / 9600
        assert f"judge, iteration 2, shard 1 to do {3 + judging / 4:,.0f} s" in output
        assert f"Judging: at most {pairs:,} pairs, {pairs * 574:,} prompt tokens" in output
        assert f"about {judging / 3600:.1f} hours and {judging / 3600 * 5.672:.2f} dollars on 1 x g5.12xlarge" in output


def test_yes_no_prompts_need_two_requests_per_pair(run_file: Path, tmp_path: Path) -> None:
    pairs = (20_070 * 10 + 70) * 2
    found = estimated(run_file, tmp_path, "judge.prompt=general-yes-no")
    assert f"at most {pairs:,} pairs of 2 requests each, {2 * pairs * 574:,} prompt tokens" in found.judging
    assert "at most 20,300 LLM calls (20,100 for a question and 200 checks" in found.summary


@pytest.mark.parametrize("verb", [["estimate"], ["train", "--dry-run"]], ids=lambda verb: verb[0])
def test_second_judge_has_its_cost_and_fingerprint(pyrite: Pyrite, run_file: Path, verb: list[str]) -> None:
    # 15 questions on validation and 15 on test; 10 passages each, and 6 more of each of the two iterations.
    pairs, computed = 30 * 22, 30 * 22 * 224 + 30 * 350
    words = ("evaluate.judge.model=second", "resources.evaluate_judge_urls=[http://localhost:1]")
    result = pyrite(*verb, run_file, *words)
    assert result.returncode == 0, result.stderr
    output = " ".join(result.stdout.split())
    digest = fingerprint("second", load_prompt("general"))[:12]
    assert f"Evaluation by second, prompt general (fingerprint {digest}): about {pairs} pairs" in output
    assert f"{pairs * 574:,} prompt tokens; about a minute and {computed / 9600 / 3600 * 5.672:.2f} dollars" in output
    if verb != ["estimate"]:
        assert f"assess to do {3 + computed / 9600:,.0f} s" in output
    assert "Evaluation by" not in pyrite(*verb, run_file).stdout


@pytest.mark.parametrize("verb", [["estimate"], ["train", "--dry-run"]], ids=lambda verb: verb[0])
def test_the_cost_of_a_cascade_is_that_of_its_second_judge(pyrite: Pyrite, run_file: Path, verb: list[str]) -> None:
    first, second = "{kind: labels, noise: {kappa: 0.5}}", "{kind: llm, model: m}"
    result = pyrite(*verb, run_file, f"judge={{kind: cascade, first: {first}, second: {second}}}")
    output = " ".join(result.stdout.split())
    assert "Judge: cascade of labels with simulated errors (noise of kappa 0.5) and m, prompt general." in output
    assert "That is the maximum for judge.second, if judge.first decides nothing" in output


def test_no_answer_checks_with_labels_or_without_a_grade(run_file: Path, tmp_path: Path) -> None:
    for words in (["generate.answerable_grade=null"], ["judge.kind=labels", "generate.share_from_passages=1"]):
        output = estimated(run_file, tmp_path, *words).summary
        assert "LLM calls (" in output
        assert "check" not in output


def test_training_time_includes_regularisation_and_soups(run_file: Path, tmp_path: Path) -> None:
    def training(*words: str) -> float:
        """Seconds after start-up."""
        return estimated(run_file, tmp_path, *words).seconds[Step("finetune", 1)] - 3

    plain = training("finetune.rehearsal=0")
    assert plain == pytest.approx(20_070 * 2 * 840 / 15_000)
    tokens = rehearsal.TEXTS * rehearsal.MAX_WORDS
    assert training() - plain == pytest.approx(20_070 / 32 * tokens * 4.2 * 4 / 3 / 15_000)
    assert training("finetune.rehearsal=0", "finetune.anchor=1") == pytest.approx(plain * 4 / 3)
    assert training("finetune.rehearsal=0", "finetune.train=query") == pytest.approx(plain / 3)
    assert training("finetune.soup_size=3") == pytest.approx(3 * training())


def test_two_machines_halve_the_time_at_the_same_cost(run_file: Path, tmp_path: Path) -> None:
    on = replace(machine(DEFAULT_MACHINE), name="ours", computed_tokens_per_second=960, written_tokens_per_second=600)
    run = opened(run_file, tmp_path)
    one, two = (estimate(run, on, machines, here=SPEED).summary for machines in (1, 2))
    assert "about 1.7 hours and 9.39 dollars on 1 x ours" in one
    assert "about 50 minutes and 9.39 dollars on 2 x ours" in two


def test_only_a_probe_of_the_same_judge_is_used(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    judge = fingerprint(MODEL, load_prompt("general"))
    speed = {"pairs_per_second": 8.0, "servers": 2, "prompt_tokens_per_pair": 500.0, "cached_tokens_per_pair": 300.0}
    measured = {"judge": {"fingerprint": judge}, "go": True, "finished": "2026-01-01T00:00:00+00:00", **speed}
    open_store(str(tmp_path / "store")).write(
        f"runs/small/probe/{judge[:12]}/probe.json", json.dumps(measured).encode()
    )
    output = " ".join(pyrite("estimate", run_file).stdout.split())
    pairs = (20_070 * 10 + 70) * 2
    assert f"hours {pairs / (4 * 4) / 3600:.1f}; speed: measured by the probe" in output
    assert f"{pairs * 500:,}, {pairs * 200:,} of them computed" in output
    assert "not measured yet" in pyrite("estimate", run_file, "judge.prompt=medical").stdout


def test_finished_shards_count_their_actual_questions(run_file: Path, tmp_path: Path) -> None:
    words = ("generate.queries=40", "generate.answerable_grade=null", "evaluate.blends=[]")
    run = opened(run_file, tmp_path, *words)

    def judged(queries: int) -> bool:
        """Whether the pairs are of this many queries: 10 ranks, for 14 of 34 also the own passage, 2 iterations."""
        cost = estimate(run, here=SPEED).all_judging
        return cost is not None and cost.pairs == round(queries * (10 + 14 / 34) * 2)

    assert "at most 34 training queries (34 of them not generated yet" in estimate(run, here=SPEED).summary
    run_step(run, Step("prepare"), NullProgress())
    assert "at most 34 training queries (34 of them not generated yet" in estimate(run, here=SPEED).summary
    generated = run_step(run, Step("generate", None, 0), NullProgress())["summary"]["splits"]["train"]
    assert (
        f"at most {generated + 17} training queries (17 of them not generated yet" in estimate(run, here=SPEED).summary
    )
    assert judged(generated + 17)
    generated += run_step(run, Step("generate", None, 1), NullProgress())["summary"]["splits"]["train"]
    after = estimate(run, here=SPEED).summary
    assert f" {generated} training queries; about" in after
    assert "at most" not in after
    assert "LLM calls" not in after
    assert judged(generated)


def test_larger_models_take_longer_and_duplicates_count_once(tmp_path: Path, tiny_model: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "qrels").mkdir(parents=True)
    (elsewhere / "corpus.jsonl").write_text(json.dumps({"_id": "d", "text": "sea " * 50_000}))
    (elsewhere / "queries.jsonl").write_text('{"_id": "q", "text": "What is the sea?"}')
    (elsewhere / "qrels/test.tsv").write_text("q\td\t1\n")
    path = tmp_path / "sample.yaml"
    path.write_text("source: {kind: sample}\n")

    # The speed of this machine is measured for each.
    tiny, packaged = (estimate(opened(path, tmp_path, *words)) for words in ([f"model.base={tiny_model}"], []))
    validate, finetune = Step("validate", 0), Step("finetune", 1)
    assert packaged.seconds[finetune] > tiny.seconds[finetune]
    assert "with this model of 23 million weights" in packaged.summary
    assert 1000 < int(packaged.summary.split(" passages")[0].replace(",", "")) < 1100
    retained, without = (estimated(path, tmp_path, *words) for words in ([f"evaluate.retention.path={elsewhere}"], []))
    assert retained.seconds[validate] > without.seconds[validate] + 3


def test_title_pairs_take_time_for_each_passage_at_most(tmp_path: Path) -> None:
    path = tmp_path / "sample.yaml"
    path.write_text("source: {kind: sample}\n")

    def seconds(*words: str) -> float:
        return estimated(path, tmp_path, *words).seconds[Step("finetune", 1)]

    without, some, most, more = (seconds(f"mine.title_pairs={pairs}") for pairs in (0, 100, 5_000, 1_000_000))
    assert without < some < most == more


def test_a_workload_is_estimated_from_numbers_alone(pyrite: Pyrite, tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("source: {kind: jsonl, path: absent.jsonl}\njudge: {kind: llm, model: m}\n")
    result = pyrite("estimate", path, "--passages", "1000000", "--queries", "100000")
    assert result.returncode == 0, result.stderr
    assert "1,000,000 passages, 100,000 training queries" in result.stdout
    stages = [line.split()[0] for line in result.stdout.splitlines() if line.split()[1:2] and line.split()[1].isdigit()]
    assert stages[:8] == ["prepare", "embed", "validate", "retrieve", "judge", "mine", "finetune", "evaluate"]
    assert not (tmp_path / "store").exists()
    result = pyrite("estimate", path, "--passages", "1000000")
    assert result.returncode == 2
    assert "--passages and --queries describe the data together" in result.stderr


def large(tmp_path: Path, *words: str, machines: int = 1, speed: Speed = SPEED, queries: int = 1_000_000) -> Estimate:
    """The estimate for 10 million passages of 800 characters."""
    path = tmp_path / "large.yaml"
    path.write_text("source: {kind: jsonl, path: absent.jsonl}\njudge: {kind: llm, model: m}\n")
    run = Run(load(path, words), open_store(str(tmp_path / "store")), {})
    return estimate(run, None, machines, workload_of(run.spec, 10_000_000, queries), speed)


def by_stage(found: Estimate) -> dict[str, StageEstimate]:
    return {each.stage: each for each in found.stages}


def test_more_gpus_shorten_embed_and_more_servers_judging(tmp_path: Path) -> None:
    one, four = by_stage(large(tmp_path)), by_stage(large(tmp_path, "retrieve.shards=4"))
    eight = by_stage(large(tmp_path, "retrieve.shards=8", machines=2))
    assert one["embed"].there == pytest.approx(4 * four["embed"].there, rel=0.01)
    assert four["embed"].there == pytest.approx(2 * eight["embed"].there, rel=0.02)
    assert four["judge"].there == pytest.approx(2 * eight["judge"].there, rel=0.01)
    assert four["judge"].dollars == pytest.approx(eight["judge"].dollars, rel=0.01)
    assert one["embed"].memory == pytest.approx(four["embed"].memory), "each part searches for all queries"
    assert one["embed"].disk > 2 * four["embed"].disk
    assert eight["finetune"].dollars == four["finetune"].dollars, "training needs one of the machines"


def test_training_on_four_gpus_is_faster_there_and_takes_four_times_the_memory(tmp_path: Path) -> None:
    one, four = (large(tmp_path, f"finetune.gpus={gpus}") for gpus in (1, 4))
    before, after = by_stage(one)["finetune"], by_stage(four)["finetune"]
    assert after.there - 2 * 3 == pytest.approx((before.there - 2 * 3) / 4), "two iterations of 3 s to start"
    assert after.memory == pytest.approx(4 * before.memory)
    assert after.here == before.here, "this machine does not get more GPUs"


def test_numbers_obey_the_limit_of_training_queries(tmp_path: Path) -> None:
    assert "10,000,000 passages, 320 training queries" in large(tmp_path, "prepare.max_train_queries=320").summary


def test_finished_steps_do_not_shorten_an_estimate_from_numbers(run_file: Path, tmp_path: Path) -> None:
    run = opened(run_file, tmp_path)
    work, instant = workload_of(run.spec, 100_000_000, 1), Speed(1e-12, 0, 0, 0)
    before = estimate(run, work=work, here=instant).summary
    run_step(run, Step("prepare"), NullProgress())
    assert estimate(run, work=work, here=instant).summary == before
    assert estimate(run, here=instant).summary != before


def test_work_that_is_cached_or_small_is_not_counted(tmp_path: Path) -> None:
    both, query = (large(tmp_path, f"finetune.train={train}").needs for train in ("both", "query"))
    first, last = Step("embed", 0, 0), Step("embed", 2, 0)
    assert query[first].encoded == both[first].encoded == both[last].encoded == 8e9
    assert query[last].encoded == 0, "passages have the base model's embeddings"
    # 30 queries of test, with 15 passages each that evaluate scores again: for the base model and two iterations, the
    # chosen model, and the base and the chosen model without context.
    rescored = large(tmp_path, queries=140).needs[Step("evaluate")].encoded_float32
    assert rescored == pytest.approx(6 * 30 * 15 * 800)


def test_the_measured_speed_is_that_of_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Encoder:
        """Encodes 1,000 characters a second of a clock that only it moves, because a timed test would be unreliable."""

        precision, device = "auto", "cpu"

        def encode(self, texts: list[str], _kind: str) -> None:
            clock[0] += sum(map(len, texts)) / 1000

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    for has_bf16, slower in ((True, 2.7), (False, 0)):
        monkeypatch.setattr("pyrite.embedding.models.uses_bf16", lambda *_, has=has_bf16: has)
        found = measure_speed(Encoder(), 800, Size(1, 1, 384))  # type: ignore[arg-type]
        assert found.per_encoded == pytest.approx(1e-3)
        assert found.per_encoded_float32 == pytest.approx(slower * 1e-3), "without bf16, nothing is scored again"
