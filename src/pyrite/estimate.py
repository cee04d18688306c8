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
from pyrite.embedding.models import Size, base_folder, size
from pyrite.executors.step import Run
from pyrite.generation.sampling import shares
from pyrite.identity import passage_id
from pyrite.judges import fingerprint
from pyrite.plan import Step, chain, survey
from pyrite.sources import open_source, retention
from pyrite.sources.base import Document, Question
from pyrite.spec import RunSpec

#: Measured on 2 cores of an AMD EPYC with AVX-512 BF16, all-MiniLM-L6-v2: see docs/results.md. Others differ.
_ENCODED_CHARACTERS_PER_SECOND = 55_000
_TRAINED_CHARACTERS_PER_SECOND = 15_000
_START_SECONDS = 3.0
_MEBIBYTES = 900
_MEASURED = Size(22_700_000, 10_800_000, 384)
#: A weight, its gradient and the optimizer's two moments.
_BYTES_PER_TRAINED_WEIGHT = 16


@dataclass(frozen=True)
class Estimate:
    """Seconds for each step, a sentence on the whole, and one on what a language model's judgments take, if any."""

    seconds: Mapping[Step, float]
    words: str
    judging: str


@dataclass(frozen=True)
class _Size:
    """What a run works on. ``known``: mean number of known relevant passages a query; ``own``: whether its source
    has questions; ``made``: training queries among those of ``train`` that are not made yet, which is the most that can
    come of asking.
    """

    passages: float
    characters: float
    train: float
    known: float
    own: bool
    made: float = 0

    @property
    def passage(self) -> float:
        """Characters of a passage, in the mean."""
        return self.characters / max(1, self.passages)


def estimate(run: Run, on: Machine | None = None, machines: int = 1) -> Estimate:
    """Estimate the run from its prepared tables where they are there, else from its source.

    The language model that makes questions is asked on ``machines`` of ``on`` (by default the usual one).

    Raises:
        UserError: the source cannot be read.
    """
    spec, manifests, on = run.spec, run.manifests(), on or machine(USUAL_MACHINE)
    work = _size(run, manifests)
    model = size(base_folder(spec.model.base, spec.model.revision))
    slower = max(0.1, model.multiplied / _MEASURED.multiplied)
    encode = slower * work.characters / _ENCODED_CHARACTERS_PER_SECOND
    elsewhere = slower * _retained_characters(spec) / _ENCODED_CHARACTERS_PER_SECOND
    models = 1 + len(spec.evaluate.blends)
    per_example = min(spec.prepare.max_chars, work.passage) * (1 + spec.mine.num_negatives)
    examples = work.train * spec.mine.num_positives * spec.finetune.epochs
    train = slower * examples * per_example / _TRAINED_CHARACTERS_PER_SECOND
    making = _estimate_making(run, work, on, machines)
    judging = _estimate_judging(run, work, on, machines) if spec.judge.needs_server else None
    seconds = {}
    for step in chain(spec):
        base = _START_SECONDS
        match step.stage:
            case "prepare":
                base += work.characters / 2_000_000
            case "generate":
                assert making is not None
                assert spec.generate is not None
                base += making.hours * 3600 / spec.generate.shards
            case "validate":
                base += (encode + elsewhere) * (models if step.iteration else 1)
            case "judge" if judging:
                base += judging.hours * 3600 / spec.iterations / spec.judge.shards
            case "judge" | "mine":
                base += work.train * spec.retrieve.range_max / 100_000
            case "finetune":
                assert step.iteration is not None
                base += train * (1 + 0.5 * (step.iteration - 1) if spec.mine.accumulate else 1)
            case "evaluate":
                base += encode
        seconds[step] = base
    todo = [state.step for state in survey(spec, manifests, run.external) if state.state != "done"]
    asking = {"generate", "judge"} if judging else {"generate"}
    left = sum(seconds[step] for step in todo if step.stage not in asking)
    trained = max(0, model.weights - _MEASURED.weights) * _BYTES_PER_TRAINED_WEIGHT
    searched = 2 * min(spec.resources.search_block, work.passages) * model.dims * 4  # FAISS copies each block
    held = searched + work.characters * 3 + trained
    queries = f"{work.train:,.0f} training queries"
    if work.made:
        queries = f"at most {queries} ({work.made:,.0f} of them still to be made; filters leave fewer)"
    words = (
        f"{work.passages:,.0f} passages, {queries}; about {_duration(left)} left on 2 CPU cores with this model of "
        f"{model.weights / 1e6:,.0f} million weights (a GPU is far faster), and "
        f"{_MEBIBYTES + held / 2**20:,.0f} MiB of memory."
    )
    if making and any(step.stage == "generate" for step in todo):
        words += f" {_words_of(making, on, machines)}"
    shards = sum(step.stage == "judge" for step in todo)
    share = shards / spec.iterations / spec.judge.shards
    return Estimate(seconds, words, _words_of_judging(judging, share, on, machines) if judging and share else "")


def _retained_characters(spec: RunSpec) -> int:
    if not spec.evaluate.retention:
        return 0
    return sum(len(document.text) for document in retention.read(spec.evaluate.retention.path)[0])


def _words_of(making: GenerateCost, on: Machine, machines: int) -> str:
    checks = f" and {making.checks:,} checks that a passage answers its question" if making.checks else ""
    return (
        f"Making the questions: at most {making.questions + making.checks:,} LLM calls ({making.questions:,} for a "
        f"question{checks}), {making.prompt_tokens:,} prompt tokens and {making.written_tokens:,} written; about "
        f"{_duration(making.hours * 3600)} and {making.dollars:,.2f} dollars on {machines} x {on.name}, by estimate."
    )


def _words_of_judging(cost: JudgeCost, share: float, on: Machine, machines: int) -> str:
    """In words, what the ``share`` of the judging that is left takes."""
    how = f"{machines} x {on.name}, " + ("at the speed that the probe measured" if cost.measured else "by estimate")
    return (
        f"Judging: at most {cost.pairs * share:,.0f} pairs, {cost.prompt_tokens * share:,.0f} prompt tokens; about "
        f"{_duration(cost.hours * share * 3600)} and {cost.dollars * share:,.2f} dollars on {how}."
    )


def _estimate_making(run: Run, size: _Size, on: Machine, machines: int) -> GenerateCost | None:
    """What asking for all questions takes, of whatever shard; None where none is made."""
    spec = run.spec
    if not spec.generate:
        return None
    from_passages, after_examples = sum(_drawn(spec, size).values()), _after_examples(spec)
    checking = None
    if spec.generate.answerable_grade is not None and spec.judge.needs_server:
        checking = judge_cost(from_passages, 1, 1, size.passage, on, machines, _probed(run))
    return generate_cost(from_passages, after_examples, spec.generate.shots, size.passage, on, machines, checking)


def _drawn(spec: RunSpec, size: _Size) -> dict[str, int]:
    """How many questions are asked of a passage each, by split: as many as are wanted and there are passages for."""
    assert spec.generate is not None
    count, split = spec.generate.queries - _after_examples(spec), spec.prepare.split
    wanted = {"train": count} if size.own else shares(count, split)
    there = {"train": split.train, "val": split.val, "test": split.test}
    return {name: min(many, round(there[name] * size.passages)) for name, many in wanted.items()}


def _after_examples(spec: RunSpec) -> int:
    assert spec.generate is not None
    return spec.generate.queries - round(spec.generate.queries * spec.generate.share_from_passages)


def estimate_judging(run: Run, on: Machine, machines: int) -> JudgeCost:
    """What the language model's judgments of a run take on ``machines`` of ``on``.

    Where a probe of the same judge has run, at the speed that it measured.

    Raises:
        UserError: the source cannot be read.
    """
    return _estimate_judging(run, _size(run, run.manifests()), on, machines)


def _estimate_judging(run: Run, size: _Size, on: Machine, machines: int) -> JudgeCost:
    spec = run.spec
    per_query = pairs_per_query(spec.judge, spec.retrieve.range_max, size.known)
    return judge_cost(size.train, per_query, spec.iterations, size.passage, on, machines, _probed(run))


def _probed(run: Run) -> dict[str, Any] | None:
    """What a probe of the run's language model as it is now has measured; None where none has run."""
    key = f"{run.prefix}/probe/probe.json"
    probe: dict[str, Any] | None = json.loads(run.store.read(key)) if run.store.exists(key) else None
    return probe if probe and probe["judge"]["fingerprint"] == fingerprint(run.spec) else None


def _size(run: Run, manifests: Mapping[str, Mapping[str, Any]]) -> _Size:
    size = _own_size(run, manifests)
    if not run.spec.generate:
        return size
    states = survey(run.spec, manifests, run.external)
    done = [state.step.name for state in states if state.step.stage == "generate" and state.state == "done"]
    from_passages = _drawn(run.spec, size)["train"]
    whole = from_passages + _after_examples(run.spec)
    left = whole * (1 - len(done) / run.spec.generate.shards)
    found = sum(manifests[name]["summary"]["splits"].get("train", 0) for name in done)
    train = size.train + found + left
    known = size.train * size.known + (found + left) * from_passages / whole  # each of these knows its own passage
    return replace(size, train=train, known=known / max(1, train), made=left)


def _own_size(run: Run, manifests: Mapping[str, Mapping[str, Any]]) -> _Size:
    """The corpus and its own questions."""
    if prepared := manifests.get("prepare"):
        summary = prepared["summary"]
        queries = summary["queries"]
        qrels = next(each["rows"] for each in prepared["outputs"] if each["key"] == "queries/qrels.parquet")
        known = qrels / max(1, sum(queries.values()))
        distinct = summary["passages"] / (summary["passages"] + summary["merged_passages"])
        characters = summary["characters"] * distinct
        return _Size(summary["passages"], characters, queries["train"], known, any(queries.values()))
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
    return _Size(passages, characters, min(train, run.spec.prepare.max_train_queries or train), known, questions > 0)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return "a minute"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
