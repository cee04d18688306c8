"""The stages, the steps of a run, and which step is next: pure functions of a RunSpec and the manifests in the store.

A step is finished when the ``key`` in its manifest equals the key computed here from the step's settings, the outputs
of its parents, and its external inputs (source, base model, prompts, retention sets).
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any, Literal, NamedTuple

from pyrite.spec import RunSpec

Manifests = Mapping[str, Mapping[str, Any]]
Summary = Mapping[str, Any]
State = Literal["done", "ready", "waiting"]

#: Name of the base model in tables and metrics.
BASE = "base"

#: Settings of a judge that do not change its grades.
_NOT_GRADING = {"shards", "rank_window", "patience", "stop", "max_missing"}


class Step(NamedTuple):
    """One execution of a stage. ``iteration`` 0 is the base model; None if the stage runs once per run."""

    stage: str
    iteration: int | None = None
    shard: int | None = None

    @property
    def name(self) -> str:
        """The name in keys and manifests: 'judge-1.2'."""
        text = self.stage if self.iteration is None else f"{self.stage}-{self.iteration}"
        return text if self.shard is None else f"{text}.{self.shard}"

    @property
    def label(self) -> str:
        """The name in messages: 'judge, iteration 1, shard 2'."""
        parts = [self.stage]
        if self.iteration is not None:
            parts.append(BASE if self.iteration == 0 else f"iteration {self.iteration}")
        if self.shard is not None:
            parts.append(f"shard {self.shard}")
        return ", ".join(parts)


#: `pyrite probe`: no step of a run's chain, but on a cluster it has a Job as steps do.
PROBE = Step("probe")


@dataclass(frozen=True, kw_only=True)
class StageInfo:
    """Everything that other modules need to know about a stage.

    Its code is ``pyrite.stages.<name>``, its Job ``jobs/<name>.yaml`` and its command ``pyrite <name>``.

    Attributes:
        help: help text of the command.
        settings: settings of the RunSpec that affect the result.
        more_settings: those that affect it only in some runs or iterations.
        external: inputs from outside the run that affect the result.
        parents: steps whose outputs a step reads, from the RunSpec and the step's iteration.
        headline: the result in a few words, from the summary in the manifest.
        first_iteration: first iteration with a step of this stage; None if the stage runs once per run.
        shards: number of shards in a run, 0 if the run has no such step; None if the stage is not sharded.
        needs_device: whether each shard needs a GPU, or all cores of a machine. Its shards run one after the other on
            one machine, and all at once on a cluster.
        llm: the LLM that the stage calls on the servers of ``resources.judge_urls``; None if it calls none.
        is_in: whether a run has this stage.
        awaits_scrape: whether its process waits for a last scrape of its metrics. The other stages' metrics are also
            in their manifests.
    """

    help: str
    settings: tuple[str, ...]
    more_settings: Callable[[RunSpec, int | None], tuple[str, ...]] = lambda _spec, _iteration: ()
    external: tuple[str, ...] = ()
    parents: Callable[[RunSpec, int], Sequence[Step]]
    headline: Callable[[Summary], str]
    first_iteration: int | None = None
    shards: Callable[[RunSpec], int] | None = None
    needs_device: bool = False
    llm: Callable[[RunSpec], str | None] | None = None
    is_in: Callable[[RunSpec], bool] = lambda _spec: True
    awaits_scrape: bool = False


#: Increase when a stage's output changes for the same inputs, so that steps finished by older versions run again.
FORMAT = 7

_MODEL = ("model.query_prompt", "model.passage_prompt", "model.max_tokens")


def _data_steps(spec: RunSpec) -> list[Step]:
    """The steps that write the corpus and its queries."""
    return [*_steps(spec, "prepare"), *_steps(spec, "generate")]


def _trained_model(iteration: int) -> list[Step]:
    """The step that trains the model of ``iteration``; none for the base model."""
    return [Step("finetune", iteration)] if iteration else []


def score_key(iteration: int) -> str:
    """The output of validate with the mean validation metrics of an iteration's unblended model."""
    return f"iterations/{iteration}/metrics/score.json"


def _current_model(iteration: int) -> list[Step]:
    """The steps that decide and train the model that ``iteration`` starts from: all of earlier iterations.

    The first iteration starts from the base model.
    """
    if iteration == 1:
        return []
    return [step for i in range(iteration) for step in (*_trained_model(i), Step("validate", i))]


def _parents_of_retrieve(spec: RunSpec, iteration: int) -> list[Step]:
    # Pairs that were judged relevant before are marked.
    judged = [step for i in range(1, iteration) for step in _steps(spec, "judge", i)]
    found = [step for i in range(iteration) for step in _steps(spec, "embed", i)]
    return [*_data_steps(spec), *_current_model(iteration), *found, *judged]


def _parents_of_judge(spec: RunSpec, iteration: int) -> list[Step]:
    first = [Step("retrieve", 1)] if iteration > 1 and spec.judge.reads_first_candidates else []
    return [*_data_steps(spec), *first, Step("retrieve", iteration)]


def _parents_of_mine(spec: RunSpec, iteration: int) -> list[Step]:
    # The pairs of retrieve have the texts, the known answers, and the passages that were judged relevant before.
    corpus = _data_steps(spec) if spec.mine.title_pairs else []
    earlier = [Step("mine", iteration - 1)] if iteration > 1 and spec.mine.accumulate else []
    return [*corpus, Step("retrieve", iteration), *_steps(spec, "judge", iteration), *earlier]


def _parents_of_validate(spec: RunSpec, iteration: int) -> list[Step]:
    # The pool that blends are scored on also has the passages that the base model finds.
    found = [step for i in {0, iteration} for step in _steps(spec, "embed", i)]
    return [*_data_steps(spec), *_trained_model(iteration), *found]


def _parents_of_finetune(spec: RunSpec, iteration: int) -> list[Step]:
    return [Step("mine", iteration), *(_current_model(iteration) if spec.finetune.start == "previous" else ())]


def _settings_of_mining(spec: RunSpec, _iteration: int | None) -> tuple[str, ...]:
    """The settings by which judging decides what mining needs: if it stops early, or is a cascade."""
    if not spec.judge.stop and spec.judge.kind != "cascade":
        return ()
    grades = ("positive_grade", "negative_grade", "violating_grade", "relative_margin")
    others = ("rule", "known_first", "num_negatives", "num_positives")
    return tuple(f"mine.{name}" for name in (*grades, *others))


def _settings_of_search(spec: RunSpec, iteration: int | None) -> tuple[str, ...]:
    """The settings of the search for the weight of a blend. The base model (iteration 0) has no blends."""
    if not iteration or not spec.evaluate.searches_blend:
        return ()
    retention = ("evaluate.retention.max_loss", "evaluate.retention.confidence")
    return (*retention, "evaluate.resamples", "seed")


def _headline_of_generate(summary: Summary) -> str:
    dropped = sum(summary["dropped"].values())
    return f"{summary['questions']:,} queries of {summary['requested']:,} requested, {dropped:,} dropped"


def _headline_of_judge(summary: Summary) -> str:
    notes = [f"{summary['by_first']:,} by the first judge"] if summary.get("by_first") else []
    notes += [f"{summary[name]:,} {name}" for name in ("cached", "skipped", "missing") if summary[name]]
    return ", ".join([f"{summary['judged']:,} pairs judged", *notes])


def _headline_of_assess(summary: Summary) -> str:
    return f"{_headline_of_judge(summary)}; by {summary['model']}, fingerprint {summary['judge'][:12]}"


def _headline_of_validate(summary: Summary) -> str:
    scores = (f"{val['mrr@5']:.3f} at {name.partition('@')[2]}" for name, val in summary["val"].items())
    return "MRR@5 " + ", ".join(score.removesuffix(" at ") for score in scores)


#: Every stage, in the order of a run. Each iteration runs all stages that have iterations, in this order.
STAGES: dict[str, StageInfo] = {
    "prepare": StageInfo(
        help="Turn documents into passages, and split the queries by topic.",
        settings=("prepare",),
        external=("source",),
        parents=lambda _spec, _: [],
        headline=lambda summary: f"{summary['passages']:,} passages, {sum(summary['queries'].values()):,} queries",
    ),
    "generate": StageInfo(
        help="Generate one shard of the queries with an LLM, if the run file has `generate`.",
        settings=(
            "generate",
            "prepare.split",
            "prepare.seed",
            "judge.kind",
            "judge.model",
            "judge.prompt",
            "judge.query_template",
            "judge.document_template",
            "judge.calibration",
        ),
        external=("prompt", "generate_prompt", "calibration"),
        parents=lambda spec, _: _steps(spec, "prepare"),
        headline=_headline_of_generate,
        shards=lambda spec: spec.generate.shards if spec.generate else 0,
        llm=lambda spec: spec.generator_model,
        awaits_scrape=True,
    ),
    "retrieve": StageInfo(
        help="Join the current model's best passages for every training query with their texts.",
        settings=("retrieve", "judge.shards"),
        parents=_parents_of_retrieve,
        headline=lambda summary: f"{summary['candidates']:,} candidates of {summary['model']}",
        first_iteration=1,
        awaits_scrape=True,
    ),
    "judge": StageInfo(
        help="Grade one shard of an iteration's (query, passage) pairs.",
        settings=("judge",),
        more_settings=_settings_of_mining,
        external=("prompt", "confusion", "calibration", "first_prompt", "first_confusion", "first_calibration"),
        parents=_parents_of_judge,
        headline=_headline_of_judge,
        first_iteration=1,
        shards=lambda spec: spec.judge.shards,
        llm=lambda spec: spec.judge.server_model,
        awaits_scrape=True,
    ),
    "mine": StageInfo(
        help="Select training examples where grades and ranks disagree.",
        settings=("mine", "finetune.loss", "seed"),
        parents=_parents_of_mine,
        headline=lambda summary: (
            f"{summary['examples']:,} examples; new: {summary['hard']:,} hard, {summary['easy']:,} easy"
            + (f", {summary['title_pairs']:,} title pairs" if "title_pairs" in summary else "")
        ),
        first_iteration=1,
    ),
    "finetune": StageInfo(
        help="Train the model on the examples.",
        settings=(*_MODEL, "finetune", "seed"),
        external=("model",),
        parents=_parents_of_finetune,
        headline=lambda summary: (
            f"{summary['steps']:,} training steps from {summary['start']}, loss {summary['loss']:.3f}"
        ),
        first_iteration=1,
        awaits_scrape=True,
    ),
    "embed": StageInfo(
        help="Encode and search one part of the corpus with an iteration's model.",
        settings=(*_MODEL, "retrieve"),
        external=("model",),
        parents=lambda spec, iteration: [*_data_steps(spec), *_trained_model(iteration)],
        headline=lambda summary: f"{summary['passages']:,} passages encoded and searched",
        first_iteration=0,
        shards=lambda spec: spec.retrieve.shards,
        needs_device=True,
        awaits_scrape=True,
    ),
    "validate": StageInfo(
        help="Score an iteration's model, and its blends with the base model, on the validation queries.",
        settings=(*_MODEL, "evaluate.blends", "evaluate.judge.kind"),
        more_settings=_settings_of_search,
        external=("model", "retention"),
        parents=_parents_of_validate,
        headline=_headline_of_validate,
        first_iteration=0,
    ),
    "assess": StageInfo(
        help="Grade the first 10 passages of all candidates with `evaluate.judge`, if the run file has it.",
        settings=("evaluate.judge",),
        external=("evaluate_prompt",),
        parents=lambda spec, _: [*_data_steps(spec), *(Step("validate", i) for i in range(spec.iterations + 1))],
        headline=_headline_of_assess,
        is_in=lambda spec: spec.evaluate.judge is not None,
        awaits_scrape=True,
    ),
    "evaluate": StageInfo(
        help="Choose a model by its validation scores, score it once on test, and write the report.",
        settings=(*_MODEL, "evaluate", "seed"),
        external=("model", "retention", "retention_report"),
        parents=lambda spec, _: list(takewhile(lambda step: step.stage != "evaluate", chain(spec))),
        headline=lambda summary: f"chosen: {summary['chosen']}",
    ),
}


def _steps(spec: RunSpec, stage: str, iteration: int | None = None) -> list[Step]:
    """The steps of a stage in one iteration: none, one, or one per shard."""
    info = STAGES[stage]
    if not info.is_in(spec):
        return []
    if iteration is not None and info.first_iteration is not None and iteration < info.first_iteration:
        return []
    return [Step(stage, iteration, shard) for shard in (range(info.shards(spec)) if info.shards else [None])]


def chain(spec: RunSpec) -> list[Step]:
    """All steps of a run; each comes after its parents."""
    steps: list[Step] = []
    for repeats, group in groupby(STAGES, key=lambda stage: STAGES[stage].first_iteration is not None):
        stages = list(group)
        for iteration in range(spec.iterations + 1) if repeats else [None]:
            steps += [step for stage in stages for step in _steps(spec, stage, iteration)]
    return steps


def parents(spec: RunSpec, step: Step) -> Sequence[Step]:
    """The steps whose outputs ``step`` reads."""
    return STAGES[step.stage].parents(spec, step.iteration or 0)


@dataclass(frozen=True)
class StepState:
    """The state of a step.

    Attributes:
        key: digest of everything that the result depends on; None while a parent is unfinished.
        stale: why an existing result is out of date.
    """

    step: Step
    state: State
    key: str | None = None
    inputs: Mapping[str, str] | None = None
    stale: str | None = None


def survey(spec: RunSpec, manifests: Manifests, external: Mapping[str, str]) -> list[StepState]:
    """The state of every step of the run, in chain order.

    Args:
        external: digests of the inputs from outside the run, such as "source". A missing digest is assumed to be the
            one in the step's manifest.
    """
    done: set[Step] = set()
    states = []
    for step in chain(spec):
        manifest = manifests.get(step.name)
        above = parents(spec, step)
        if not all(parent in done for parent in above):
            states.append(StepState(step, "waiting", stale="an earlier step has to run again" if manifest else None))
            continue
        inputs = input_digests(spec, step, manifests)
        recorded = manifest["external"] if manifest else {}
        outside = {name: external.get(name, recorded.get(name, "")) for name in STAGES[step.stage].external}
        key = step_key(spec, step, inputs, outside)
        if manifest and manifest["key"] == key:
            done.add(step)
            states.append(StepState(step, "done", key, inputs))
        else:
            why = _changes(spec, step, manifest, inputs, outside) if manifest else None
            states.append(StepState(step, "ready", key, inputs, why))
    return states


def next_steps(states: list[StepState]) -> list[StepState]:
    """The steps that can run now: the first ready one, and all ready shards of its stage and iteration."""
    ready = [state for state in states if state.state == "ready"]
    return [state for state in ready if state.step[:2] == ready[0].step[:2]]


def settings(spec: RunSpec, step: Step) -> dict[str, Any]:
    """The settings that the step's result depends on, by name."""
    info = STAGES[step.stage]
    return spec.settings(*info.settings, *info.more_settings(spec, step.iteration))


def step_key(spec: RunSpec, step: Step, inputs: Mapping[str, str], outside: Mapping[str, str]) -> str:
    """Hex digest of everything that a step's result depends on."""
    content = {
        "format": FORMAT,
        "step": step.name,
        "settings": settings(spec, step),
        "inputs": dict(inputs),
        "external": dict(outside),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def input_digests(spec: RunSpec, step: Step, manifests: Manifests) -> dict[str, str]:
    """The digests of the outputs that ``step`` reads, by the name of the parent, all of which are finished.

    Of validate's outputs, only assess and evaluate read those of blends. So other blends do not repeat a training.
    """
    reads_blends = step.stage in ("assess", "evaluate")
    return {
        parent.name: outputs_digest(
            manifests[parent.name],
            score_key(parent.iteration or 0) if parent.stage == "validate" and not reads_blends else None,
        )
        for parent in parents(spec, step)
    }


def outputs_digest(manifest: Mapping[str, Any], only: str | None = None) -> str:
    """Hex digest of a finished step's outputs: their keys and contents. ``only`` limits it to one key."""
    entries = sorted(
        (entry["key"], entry["sha256"]) for entry in manifest["outputs"] if only is None or entry["key"] == only
    )
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def probe_key(spec: RunSpec) -> str:
    """Hex digest of the settings of the judge that a probe is about: of a cascade, the second one."""
    settings = spec.main_judge.spec.model_dump(mode="json", exclude=_NOT_GRADING)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def failed_checks(probe: Mapping[str, Any]) -> str:
    """The failed checks of a probe, from the content of probe.json: "few missing: 40 of 420 pairs have no grade"."""
    return "; ".join(f"{check['name']}: {check['found']}" for check in probe["checks"] if not check["passed"])


def no_go(failure: str, page: str, force: str) -> str:
    """Why a run stops whose judge failed its probe. ``force``: what uses the judge in spite of that."""
    return f"{failure}. Change the judge and probe again, or {force}. The probe's page: {page}"


def _changes(
    spec: RunSpec,
    step: Step,
    manifest: Mapping[str, Any],
    inputs: Mapping[str, str],
    outside: Mapping[str, str],
) -> str:
    """How the settings and inputs of a step have changed since ``manifest`` was written."""
    before, now = flatten(manifest["settings"]), flatten(settings(spec, step))
    changes = []
    kinds = before.get("judge.kind"), now.get("judge.kind")
    if kinds[0] != kinds[1]:
        changes = [f"judge.kind: {kinds[0]} -> {kinds[1]}"]
        # Most other settings of the judge exist in one of the kinds only.
        judge = {name for name in before.keys() | now.keys() if name.startswith("judge.")}
        one = {name for name in judge if name == "judge.kind" or before.get(name) is None or now.get(name) is None}
        before, now = ({name: value for name, value in each.items() if name not in one} for each in (before, now))
    changes += [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    changes += [f"{name} wrote other outputs" for name in inputs if manifest["inputs"].get(name) != inputs[name]]
    changes += [f"the {name} changed" for name in outside if manifest["external"].get(name) != outside[name]]
    return "; ".join(changes) or "it was written by another version of Pyrite"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted path: {"finetune.epochs": 1, ...}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
