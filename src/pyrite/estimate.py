"""Estimates the time, memory and cost of a run, from measured speeds and the size of its data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyrite.costs import (
    DEFAULT_MACHINE,
    GenerateCost,
    JudgeCost,
    Machine,
    generate_cost,
    judge_cost,
    machine,
    pairs_per_query,
)
from pyrite.embedding.models import Size, base_folder, size
from pyrite.evaluation.selection import DEFAULT_BLENDS, SEARCH_STEPS
from pyrite.executors.step import Run
from pyrite.generation.sampling import split_counts
from pyrite.identity import passage_id
from pyrite.judges import fingerprint, requests_per_pair
from pyrite.judges.base import short
from pyrite.plan import Step, chain, failed_checks, survey
from pyrite.sources import open_source, retention
from pyrite.sources.base import Document, Question
from pyrite.spec import CascadeJudgeSpec, RunSpec

#: About the cost of a cascade.
CASCADE_NOTE = "That is the maximum for judge.second, if judge.first decides nothing; judge.first is not included."

#: Measured on 2 cores of an AMD EPYC with AVX-512 BF16 and all-MiniLM-L6-v2 (docs/results.md). Other machines differ.
_ENCODED_CHARACTERS_PER_SECOND = 55_000
_TRAINED_CHARACTERS_PER_SECOND = 15_000
#: A forward pass relative to a training step of the same texts, whose backward pass takes twice as long as its forward.
_FORWARD = 1 / 3
#: Characters per training step that pseudo-rehearsal adds: ``training.rehearsal.TEXTS`` texts, padded to up to
#: ``MAX_WORDS`` words of one token, with 4.2 characters per token.
_REHEARSAL_CHARACTERS = 24 * 48 * 4.2
#: Encoding in float32 against bf16.
_FLOAT32_SLOWDOWN = 2.7
_START_SECONDS = 3.0
_BASE_MEBIBYTES = 900
_MEASURED = Size(22_700_000, 10_800_000, 384)
#: Passages in the pool of a query that evaluate.judge grades: of the base model, and added by each iteration with its
#: blends. Measured: 16.1 with one iteration, 19.8 with two and a blend (MedQuAD, 287 test queries).
_POOLED, _POOLED_PER_ITERATION = 10, 6
#: Weight, gradient and the optimizer's two moments, in float32.
_BYTES_PER_TRAINED_WEIGHT = 16


@dataclass(frozen=True)
class Estimate:
    """The estimate of a run.

    Attributes:
        seconds: expected time of each step.
        summary: data, remaining time without judging, memory and cost of generating questions, as text.
        judging: the cost of the remaining LLM judgments as text; empty if there are none.
        assessing: evaluate.judge and the cost of its judgments as text; empty without it, or if it has finished.
    """

    seconds: Mapping[Step, float]
    summary: str
    judging: str
    assessing: str


@dataclass(frozen=True)
class _Size:
    """Size of a run's data.

    Attributes:
        train: number of training queries.
        held_out: number of validation and test queries.
        known: mean number of known relevant passages per query.
        has_questions: whether the source has questions.
        to_generate: number of training queries not generated yet, before filters drop some. ``train`` includes them.
    """

    passages: float
    characters: float
    train: float
    held_out: float
    known: float
    has_questions: bool
    to_generate: float = 0

    @property
    def passage_characters(self) -> float:
        """Mean characters per passage."""
        return self.characters / max(1, self.passages)


def estimate(run: Run, on: Machine | None = None, machines: int = 1) -> Estimate:
    """Estimate the run from its prepared tables, or from its source if it is not prepared.

    The LLM's servers run on ``machines`` machines of type ``on``, by default DEFAULT_MACHINE.

    Raises:
        UserError: the source cannot be read.
    """
    spec, manifests, on = run.spec, run.manifests(), on or machine(DEFAULT_MACHINE)
    work = _size(run, manifests)
    model = size(base_folder(spec.model.base, spec.model.revision))
    slowdown = max(0.1, model.multiplied / _MEASURED.multiplied)
    encode = slowdown * work.characters / _ENCODED_CHARACTERS_PER_SECOND
    sets = spec.evaluate.retention
    encode_retention, encode_reported = (
        slowdown * _retention_characters(paths) / _ENCODED_CHARACTERS_PER_SECOND
        for paths in (([sets.path], sets.report) if sets else ([], []))
    )
    # Upper bounds. Within the retention limit, an iteration has the default blends. Otherwise the search scores
    # SEARCH_STEPS blends on the retention set, and at most one of them on validation.
    blends = len(DEFAULT_BLENDS if spec.evaluate.blends is None else spec.evaluate.blends)
    retention_models = 1 + (SEARCH_STEPS if spec.evaluate.searches_blend else blends)
    train = slowdown * _trained_characters(spec, work) / _TRAINED_CHARACTERS_PER_SECOND
    generating = _estimate_generating(run, work, on, machines)
    judging = _estimate_judging(run, work, on, machines) if spec.judge.needs_server else None
    assessing = _estimate_assessing(run, work, on, machines)
    seconds = {}
    for step in chain(spec):
        expected = _START_SECONDS
        match step.stage:
            case "prepare":
                expected += work.characters / 2_000_000
            case "generate":
                assert generating is not None
                assert spec.generate is not None
                expected += generating.hours * 3600 / spec.generate.shards
            case "embed":
                expected += encode / spec.retrieve.shards
            case "validate":
                expected += encode * blends if step.iteration else 0  # at most: a blend encodes the pool only
                expected += encode_retention * (retention_models if step.iteration else 1)
            case "judge" if judging:
                expected += judging.hours * 3600 / spec.iterations / spec.judge.shards
            case "judge" | "mine" | "retrieve":
                expected += work.train * spec.retrieve.range_max / 100_000
            case "finetune":
                assert step.iteration is not None
                expected += train * (1 + 0.5 * (step.iteration - 1) if spec.mine.accumulate else 1)
            case "assess":
                assert assessing is not None
                expected += assessing.hours * 3600
            case "evaluate":
                # A blend; base and chosen model without context. Of each model, a third of the corpus in float32.
                expected += encode * (3 + _FLOAT32_SLOWDOWN * (4 + spec.iterations) / 3)
                expected += encode_reported * (2 + spec.iterations)
        seconds[step] = expected
    todo = [state.step for state in survey(spec, manifests, run.external) if state.state != "done"]
    with_server = {"generate", "assess", *(["judge"] if judging else [])}
    left = sum(seconds[step] for step in todo if step.stage not in with_server)
    trained = max(0, model.weights - _MEASURED.weights) * _BYTES_PER_TRAINED_WEIGHT
    memory = work.characters * 3 + trained
    queries = f"{work.train:,.0f} training queries"
    if work.to_generate:
        queries = f"at most {queries} ({work.to_generate:,.0f} of them not generated yet; filters drop some)"
    summary = (
        f"{work.passages:,.0f} passages, {queries}; about {_duration(left)} left on 2 CPU cores with this model of "
        f"{model.weights / 1e6:,.0f} million weights (a GPU is far faster), and "
        f"{_BASE_MEBIBYTES + memory / 2**20:,.0f} MiB of memory."
    )
    if spec.judge.kind == "cascade" or spec.judge.identity["errors"]:
        summary += f" Judge: {spec.judge.label}."
    if isinstance(spec.judge, CascadeJudgeSpec) and work.train / spec.judge.shards <= spec.judge.pilot:
        summary += f" {spec.judge.idle_first(round(work.train / spec.judge.shards))}"
    if generating and any(step.stage == "generate" for step in todo):
        summary += f" {_describe_generating(generating, on, machines)}"
    shards = sum(step.stage == "judge" for step in todo)
    share = shards / spec.iterations / spec.judge.shards
    text = f"Judging: {_describe_judging(judging, share, on, machines)}" if judging and share else ""
    if text and spec.judge.kind == "cascade":
        text += f" {CASCADE_NOTE}"
    assess_text = describe_assessing(run, assessing, on, machines) if assessing and Step("assess") in todo else ""
    return Estimate(seconds, summary, text, assess_text)


def _trained_characters(spec: RunSpec, work: _Size) -> float:
    """Characters that an iteration trains on, without examples of earlier iterations.

    A forward pass of the base model counts as ``_FORWARD`` of them. With ``finetune.train: query``, passages have only
    that pass, and queries are too short to count.
    """
    settings = spec.finetune
    per_example = min(spec.prepare.max_chars, work.passage_characters) * (1 + spec.mine.num_negatives)
    if settings.train == "query":
        per_example *= _FORWARD
    elif settings.anchor:
        per_example *= 1 + _FORWARD
    per_step = settings.batch_size * per_example
    if settings.rehearsal:
        per_step += _REHEARSAL_CHARACTERS * (1 + _FORWARD)
    examples = work.train * spec.mine.num_positives + min(spec.mine.title_pairs, work.passages)
    steps = examples * settings.epochs / settings.batch_size
    return steps * per_step * settings.soup_size


def _retention_characters(paths: list[str]) -> int:
    return sum(len(document.text) for path in paths for document in retention.read(path)[0])


def _describe_generating(cost: GenerateCost, on: Machine, machines: int) -> str:
    checks = f" and {cost.checks:,} checks that a passage answers its question" if cost.checks else ""
    return (
        f"Generating questions: at most {cost.questions + cost.checks:,} LLM calls ({cost.questions:,} for a "
        f"question{checks}), {cost.prompt_tokens:,} prompt tokens and {cost.written_tokens:,} generated; about "
        f"{_duration(cost.hours * 3600)} and {cost.dollars:,.2f} dollars on {machines} x {on.name}, by estimate."
    )


def _describe_judging(cost: JudgeCost, share: float, on: Machine, machines: int) -> str:
    """Describe the cost of ``share`` of the judging."""
    how = f"{machines} x {on.name}, " + ("at the speed that the probe measured" if cost.measured else "by estimate")
    requests = f" of {cost.requests} requests each" if cost.requests > 1 else ""
    return (
        f"at most {cost.pairs * share:,.0f} pairs{requests}, {cost.prompt_tokens * share:,.0f} prompt tokens; about "
        f"{_duration(cost.hours * share * 3600)} and {cost.dollars * share:,.2f} dollars on {how}."
    )


def describe_assessing(run: Run, cost: JudgeCost, on: Machine, machines: int) -> str:
    """Describe evaluate.judge and the cost of its judgments."""
    evaluator = run.spec.evaluation_judge
    assert evaluator is not None
    who = f"{evaluator.spec.label} (fingerprint {short(fingerprint(evaluator))})"
    return (
        f"Evaluation by {who}: about {cost.pairs:,} pairs, {cost.prompt_tokens:,} prompt tokens; about "
        f"{_duration(cost.hours * 3600)} and {cost.dollars:,.2f} dollars on {machines} x {on.name}, by estimate."
    )


def _estimate_generating(run: Run, size: _Size, on: Machine, machines: int) -> GenerateCost | None:
    """The cost of generating the questions of all shards; None if the run generates none."""
    spec = run.spec
    if not spec.generate:
        return None
    from_passages, few_shot = sum(_from_passages(spec, size).values()), _few_shot(spec)
    checking = None
    if spec.generate.answerable_grade is not None and spec.judge.needs_server:
        how = on, machines, probed(run, any_calibration=True), requests_per_pair(spec.main_judge)
        checking = judge_cost(from_passages, 1, 1, size.passage_characters, *how)
    return generate_cost(from_passages, few_shot, spec.generate.shots, size.passage_characters, on, machines, checking)


def _from_passages(spec: RunSpec, size: _Size) -> dict[str, int]:
    """Number of questions generated from passages, by split: at most one per passage."""
    assert spec.generate is not None
    count, split = spec.generate.queries - _few_shot(spec), spec.prepare.split
    requested = {"train": count} if size.has_questions else split_counts(count, split)
    available = {"train": split.train, "val": split.val, "test": split.test}
    return {name: min(many, round(available[name] * size.passages)) for name, many in requested.items()}


def _few_shot(spec: RunSpec) -> int:
    assert spec.generate is not None
    return spec.generate.queries - round(spec.generate.queries * spec.generate.share_from_passages)


def estimate_judging(run: Run, on: Machine, machines: int) -> JudgeCost:
    """The cost of a run's LLM judgments on ``machines`` machines of type ``on``.

    Uses the speed that a probe of the same judge measured, if there is one.

    Raises:
        UserError: the source cannot be read.
    """
    return _estimate_judging(run, _size(run, run.manifests()), on, machines)


def _estimate_judging(run: Run, size: _Size, on: Machine, machines: int) -> JudgeCost:
    spec = run.spec
    # Without a need for their grades, at most 100 known answers are judged.
    known = size.known if spec.judges_known_answers else 0
    per_query = pairs_per_query(spec.judge, spec.retrieve.range_max, known)
    how = on, machines, probed(run, any_calibration=True), requests_per_pair(spec.main_judge)
    return judge_cost(size.train, per_query, spec.iterations, size.passage_characters, *how)


def estimate_assessing(run: Run, on: Machine, machines: int) -> JudgeCost | None:
    """The cost of the judgments of evaluate.judge; None without that judge. Raises UserError as estimate_judging."""
    return _estimate_assessing(run, _size(run, run.manifests()), on, machines)


def _estimate_assessing(run: Run, size: _Size, on: Machine, machines: int) -> JudgeCost | None:
    evaluator = run.spec.evaluation_judge
    if evaluator is None:
        return None
    pooled = min(size.passages, _POOLED + _POOLED_PER_ITERATION * run.spec.iterations)
    how = on, machines, None, requests_per_pair(evaluator)
    return judge_cost(size.held_out, pooled, 1, size.passage_characters, *how)


def probe_folder(run: Run) -> str:
    """Where the probe of the run's current judge, with its calibration, is stored."""
    names = short(fingerprint(run.spec.main_judge)), run.external.get("calibration", "")[:12]
    return f"{run.prefix}/probe/{'-'.join(filter(None, names))}"


def probed(run: Run, *, any_calibration: bool = False) -> dict[str, Any] | None:
    """The latest probe of the run's current judge (probe.json); None if there is none.

    Args:
        any_calibration: also accept a probe with another calibration: the judge's speed is the same.
    """
    keys = [key for key in run.store.keys(f"{run.prefix}/probe") if key.endswith("/probe.json")]
    found: list[dict[str, Any]] = [json.loads(run.store.read(key)) for key in keys]
    own = [each for each in found if each["judge"]["fingerprint"] == fingerprint(run.spec.main_judge)]
    if not any_calibration:
        calibration = run.external.get("calibration", "")
        own = [each for each in own if each["judge"].get("calibration", "") == calibration]
    return max(own, key=lambda each: each["finished"], default=None)


def probe_failure(probe: Mapping[str, Any] | None) -> str | None:
    """The no-go of a probe with its failed checks, as text; None if there is no probe or it did not fail."""
    if probe is None or probe["go"] is not False:
        return None
    return f"this judge failed its probe ({failed_checks(probe)})"


def _size(run: Run, manifests: Mapping[str, Mapping[str, Any]]) -> _Size:
    size = _own_size(run, manifests)
    if not run.spec.generate:
        return size
    states = survey(run.spec, manifests, run.external)
    done = [state.step.name for state in states if state.step.stage == "generate" and state.state == "done"]
    planned = _from_passages(run.spec, size)
    from_passages = planned["train"]
    total = from_passages + _few_shot(run.spec)
    left = total * (1 - len(done) / run.spec.generate.shards)
    found = sum(manifests[name]["summary"]["splits"].get("train", 0) for name in done)
    train = size.train + found + left
    known = size.train * size.known + (found + left) * from_passages / total  # each question from a passage has one
    held_out = size.held_out + sum(planned.get(split, 0) for split in ("val", "test")) * left / total
    held_out += sum(manifests[name]["summary"]["splits"].get(split, 0) for name in done for split in ("val", "test"))
    return replace(size, train=train, held_out=held_out, known=known / max(1, train), to_generate=left)


def _own_size(run: Run, manifests: Mapping[str, Mapping[str, Any]]) -> _Size:
    """Size of the data without generated questions."""
    if prepared := manifests.get("prepare"):
        summary = prepared["summary"]
        queries = summary["queries"]
        qrels = next(each["rows"] for each in prepared["outputs"] if each["key"] == "queries/qrels.parquet")
        known = qrels / max(1, sum(queries.values()))
        distinct = summary["passages"] / (summary["passages"] + summary["merged_passages"])
        characters = summary["characters"] * distinct
        held_out = sum(queries.values()) - queries["train"]
        return _Size(summary["passages"], characters, queries["train"], held_out, known, any(queries.values()))
    characters = questions = passages = relevant = 0
    seen = set[str]()
    for record in open_source(run.spec.source).records():
        if isinstance(record, Document):
            if (text := passage_id(record.text)) in seen:
                continue
            seen.add(text)
            characters += len(record.text)
            passages += max(1, round(len(record.text) / (0.8 * run.spec.prepare.max_chars)))
        elif isinstance(record, Question):
            questions += 1
            relevant += len(record.relevant)
    known = relevant / max(1, questions) * passages / max(1, len(seen))
    train = questions * run.spec.prepare.split.train
    capped = min(train, run.spec.prepare.max_train_queries or train)
    return _Size(passages, characters, capped, questions - train, known, questions > 0)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return "a minute"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
