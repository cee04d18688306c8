"""What a run will take, before it starts: time from measured speeds, memory from what has to be held."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyrite.costs import JudgeCost, Machine, judge_cost, pairs_per_query
from pyrite.executors.step import Run
from pyrite.plan import Step, chain
from pyrite.sources import open_source
from pyrite.sources.base import Document, Question

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


def estimate(run: Run) -> Estimate:
    """Estimate the run from its prepared tables where they are there, else from its source.

    Raises:
        UserError: the source cannot be read.
    """
    spec, manifests = run.spec, run.manifests()
    size = _size(run, manifests)
    encode = size["characters"] / _ENCODED_CHARACTERS_PER_SECOND
    models = 1 + len(spec.evaluate.blends)
    per_example = min(spec.prepare.max_chars, size["characters"] / max(1, size["chunks"])) * (1 + spec.mine.negatives)
    train = size["train"] * spec.mine.positives * spec.finetune.epochs * per_example / _TRAINED_CHARACTERS_PER_SECOND
    seconds = {}
    for step in chain(spec):
        base = _START_SECONDS
        match step.stage:
            case "prepare":
                base += size["characters"] / 2_000_000
            case "validate":
                base += encode if step.iteration == 0 else encode * models
            case "judge" | "mine":
                base += size["train"] * spec.retrieve.top_k / 100_000
            case "finetune":
                assert step.iteration is not None
                base += train * (1 + 0.5 * (step.iteration - 1) if spec.mine.accumulate else 1)
            case "evaluate":
                base += encode
        seconds[step] = base
    states = run.survey()
    left = sum(seconds[state.step] for state in states if state.state != "done")
    block = spec.resources.search_block * 384 * 4 / 2**20
    text = size["characters"] * 3 / 2**20
    words = (
        f"{size['chunks']:,.0f} chunks, {size['train']:,.0f} training queries; about {_duration(left)} left on 2 CPU "
        f"cores with a small model (a GPU is far faster), and {_MODEL_MEBIBYTES + block + text:,.0f} MiB of memory."
    )
    return Estimate(seconds, words)


def estimate_judging(run: Run, on: Machine, machines: int) -> JudgeCost:
    """What the language model's judgments of a run take on ``machines`` of ``on``.

    Where a probe of the same judge has run, at the speed that it measured.

    Raises:
        UserError: the source cannot be read.
    """
    spec, size = run.spec, _size(run, run.manifests())
    key = f"{run.prefix}/probe/probe.json"
    probe = json.loads(run.store.read(key)) if run.store.exists(key) else None
    if probe and any(probe["judge"][name] != getattr(spec.judge, name) for name in ("kind", "model", "prompt")):
        probe = None
    per_query = pairs_per_query(spec.judge, spec.retrieve.top_k)
    passage = size["characters"] / max(1, size["chunks"])
    return judge_cost(size["train"], per_query, spec.iterations, passage, on, machines, probe)


def _size(run: Run, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    if prepared := manifests.get("prepare"):
        summary = prepared["summary"]
        return {
            "chunks": summary["chunks"],
            "characters": summary["characters"],
            "train": summary["queries"]["train"],
        }
    characters = questions = chunks = 0
    for record in open_source(run.spec.source).records():
        if isinstance(record, Document):
            characters += len(record.text)
            chunks += max(1, round(len(record.text) / (0.8 * run.spec.prepare.max_chars)))
        elif isinstance(record, Question):
            questions += 1
    train = questions * run.spec.prepare.split.train
    return {
        "chunks": chunks,
        "characters": characters,
        "train": min(train, run.spec.prepare.max_train_queries or train),
    }


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
