"""What a run will take, before it starts: time from measured speeds, memory from what has to be held."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyrite.costs import (
    USUAL_MACHINE,
    GenerateCost,
    JudgeCost,
    Machine,
    generate_cost,
    judge_cost,
    machine,
    pairs_per_query,
)
from pyrite.executors.step import Run
from pyrite.generation.drawing import shares
from pyrite.plan import Step, chain, survey
from pyrite.sources import open_source
from pyrite.sources.base import Document, Question
from pyrite.spec import RunSpec

#: Measured on 2 cores of an AMD EPYC with AVX-512 BF16, all-MiniLM-L6-v2: see docs/results.md. Others differ.
_ENCODED_CHARACTERS_PER_SECOND = 55_000
_TRAINED_CHARACTERS_PER_SECOND = 15_000
_START_SECONDS = 3.0
_MODEL_MEBIBYTES = 900


@dataclass(frozen=True)
class Estimate:
    """Seconds for each step, and a sentence on the whole."""

    seconds: Mapping[Step, float]
    words: str


@dataclass(frozen=True)
class _Size:
    """What a run works on. ``own``: whether its source has questions; ``made``: training queries among those of
    ``train`` that are not made yet, which is the most that can come of asking.
    """

    chunks: float
    characters: float
    train: float
    own: bool
    made: float = 0

    @property
    def passage(self) -> float:
        """Characters of a passage, in the mean."""
        return self.characters / max(1, self.chunks)


def estimate(run: Run, on: Machine | None = None, machines: int = 1) -> Estimate:
    """Estimate the run from its prepared tables where they are there, else from its source.

    The language model that makes questions is asked on ``machines`` of ``on`` (by default the usual one).

    Raises:
        UserError: the source cannot be read.
    """
    spec, manifests, on = run.spec, run.manifests(), on or machine(USUAL_MACHINE)
    size = _size(run, manifests)
    encode = size.characters / _ENCODED_CHARACTERS_PER_SECOND
    models = 1 + len(spec.evaluate.blends)
    per_example = min(spec.prepare.max_chars, size.passage) * (1 + spec.mine.negatives)
    train = size.train * spec.mine.positives * spec.finetune.epochs * per_example / _TRAINED_CHARACTERS_PER_SECOND
    making = _estimate_making(run, size, on, machines)
    seconds = {}
    for step in chain(spec):
        base = _START_SECONDS
        match step.stage:
            case "prepare":
                base += size.characters / 2_000_000
            case "generate":
                assert making is not None
                assert spec.generate is not None
                base += making.hours * 3600 / spec.generate.shards
            case "validate":
                base += encode if step.iteration == 0 else encode * models
            case "judge" | "mine":
                base += size.train * spec.retrieve.top_k / 100_000
            case "finetune":
                assert step.iteration is not None
                base += train * (1 + 0.5 * (step.iteration - 1) if spec.mine.accumulate else 1)
            case "evaluate":
                base += encode
        seconds[step] = base
    todo = [state.step for state in survey(spec, manifests, run.external) if state.state != "done"]
    left = sum(seconds[step] for step in todo if step.stage != "generate")
    block = spec.resources.search_block * 384 * 4 / 2**20
    text = size.characters * 3 / 2**20
    queries = f"{size.train:,.0f} training queries"
    if size.made:
        queries = f"at most {queries} ({size.made:,.0f} of them still to be made; filters leave fewer)"
    words = (
        f"{size.chunks:,.0f} chunks, {queries}; about {_duration(left)} left on 2 CPU "
        f"cores with a small model (a GPU is far faster), and {_MODEL_MEBIBYTES + block + text:,.0f} MiB of memory."
    )
    if making and any(step.stage == "generate" for step in todo):
        words += f" {_words_of(making, on, machines)}"
    return Estimate(seconds, words)


def _words_of(making: GenerateCost, on: Machine, machines: int) -> str:
    checks = f" and {making.checks:,} checks that a passage answers its question" if making.checks else ""
    return (
        f"Making the questions: at most {making.questions + making.checks:,} LLM calls ({making.questions:,} for a "
        f"question{checks}), {making.prompt_tokens:,} prompt tokens and {making.written_tokens:,} written; about "
        f"{_duration(making.hours * 3600)} and {making.dollars:,.2f} dollars on {machines} x {on.name}, by estimate."
    )


def _estimate_making(run: Run, size: _Size, on: Machine, machines: int) -> GenerateCost | None:
    """What asking for all questions takes, of whatever shard; None where none is made."""
    spec = run.spec
    if not spec.generate:
        return None
    from_passages, after_examples = sum(_drawn(spec, size).values()), _after_examples(spec)
    checking = None
    if spec.generate.answerable_grade is not None and spec.judge.kind == "vllm":
        checking = judge_cost(from_passages, 1, 1, size.passage, on, machines, _probed(run))
    return generate_cost(from_passages, after_examples, spec.generate.shots, size.passage, on, machines, checking)


def _drawn(spec: RunSpec, size: _Size) -> dict[str, int]:
    """How many questions are asked of a passage each, by split: as many as are wanted and there are passages for."""
    assert spec.generate is not None
    count, split = spec.generate.queries - _after_examples(spec), spec.prepare.split
    wanted = {"train": count} if size.own else shares(count, split)
    there = {"train": split.train, "val": split.val, "test": split.test}
    return {name: min(many, round(there[name] * size.chunks)) for name, many in wanted.items()}


def _after_examples(spec: RunSpec) -> int:
    assert spec.generate is not None
    return spec.generate.queries - round(spec.generate.queries * spec.generate.share_from_chunks)


def estimate_judging(run: Run, on: Machine, machines: int) -> JudgeCost:
    """What the language model's judgments of a run take on ``machines`` of ``on``.

    Where a probe of the same judge has run, at the speed that it measured.

    Raises:
        UserError: the source cannot be read.
    """
    spec, size = run.spec, _size(run, run.manifests())
    per_query = pairs_per_query(spec.judge, spec.retrieve.top_k)
    return judge_cost(size.train, per_query, spec.iterations, size.passage, on, machines, _probed(run))


def _probed(run: Run) -> dict[str, Any] | None:
    """What a probe of the run's judge as it is now has measured; None where none has run."""
    key = f"{run.prefix}/probe/probe.json"
    probe: dict[str, Any] | None = json.loads(run.store.read(key)) if run.store.exists(key) else None
    if probe and any(probe["judge"][name] != getattr(run.spec.judge, name) for name in ("kind", "model", "prompt")):
        return None
    return probe


def _size(run: Run, manifests: Mapping[str, Mapping[str, Any]]) -> _Size:
    size = _own_size(run, manifests)
    if not run.spec.generate:
        return size
    states = survey(run.spec, manifests, run.external)
    done = [state.step.name for state in states if state.step.stage == "generate" and state.state == "done"]
    whole = _drawn(run.spec, size)["train"] + _after_examples(run.spec)
    left = whole * (1 - len(done) / run.spec.generate.shards)
    found = sum(manifests[name]["summary"]["splits"].get("train", 0) for name in done)
    return replace(size, train=size.train + found + left, made=left)


def _own_size(run: Run, manifests: Mapping[str, Mapping[str, Any]]) -> _Size:
    """The corpus and its own questions."""
    if prepared := manifests.get("prepare"):
        summary = prepared["summary"]
        queries = summary["queries"]
        return _Size(summary["chunks"], summary["characters"], queries["train"], any(queries.values()))
    characters = questions = chunks = 0
    for record in open_source(run.spec.source).records():
        if isinstance(record, Document):
            characters += len(record.text)
            chunks += max(1, round(len(record.text) / (0.8 * run.spec.prepare.max_chars)))
        elif isinstance(record, Question):
            questions += 1
    train = questions * run.spec.prepare.split.train
    return _Size(chunks, characters, min(train, run.spec.prepare.max_train_queries or train), questions > 0)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return "a minute"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
