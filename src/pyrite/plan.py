"""The chain of steps as data, and what to do next: pure functions over a RunSpec and the manifests that exist.

Every executor uses these and nothing else. A step is finished when its manifest's ``key`` equals the key computed here
from the settings that matter, the outputs of its parents, and what comes from outside (source, base model, retention).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pyrite.spec import RunSpec

Manifests = Mapping[str, Mapping[str, Any]]
State = Literal["done", "ready", "waiting"]


class Step(NamedTuple):
    """One doing of a stage. ``iteration`` 0 is the base model; None where a stage runs once."""

    stage: str
    iteration: int | None = None
    shard: int | None = None

    @property
    def name(self) -> str:
        text = self.stage if self.iteration is None else f"{self.stage}-{self.iteration}"
        return text if self.shard is None else f"{text}.{self.shard}"

    @property
    def label(self) -> str:
        """As a person reads it: 'judge, iteration 1, shard 2'."""
        parts = [self.stage]
        if self.iteration is not None:
            parts.append("base" if self.iteration == 0 else f"iteration {self.iteration}")
        if self.shard is not None:
            parts.append(f"shard {self.shard}")
        return ", ".join(parts)


@dataclass(frozen=True)
class StageInfo:
    """What a stage's result depends on beside its parents: settings of the RunSpec and things from outside."""

    summary: str
    settings: tuple[str, ...]
    external: tuple[str, ...] = ()


#: Raise when a stage's output would differ for the same inputs, so that finished steps of older versions are redone.
FORMAT = 3

_MODEL = ("model.query_prompt", "model.passage_prompt", "model.max_tokens")

STAGES: dict[str, StageInfo] = {
    "prepare": StageInfo("documents to passages, questions to splits", ("prepare", "seed"), ("source",)),
    "generate": StageInfo(
        "have an LLM make questions",
        ("generate", "prepare.split", "judge.kind", "judge.model", "judge.prompt", "seed"),
        ("prompt", "generate_prompt"),
    ),
    "retrieve": StageInfo("rank the training passages for every training query", (*_MODEL, "retrieve"), ("model",)),
    "judge": StageInfo("grade the (query, passage) pairs", ("judge", "seed"), ("prompt",)),
    "mine": StageInfo("turn disagreements into training examples", ("mine", "seed")),
    "finetune": StageInfo("train the model on the examples", (*_MODEL, "finetune", "seed"), ("model",)),
    "validate": StageInfo(
        "score the model, and its blends with the base, on the validation queries",
        (*_MODEL, "evaluate.blends"),
        ("model", "retention"),
    ),
    "evaluate": StageInfo(
        "choose on validation, score once on test, write the report",
        (*_MODEL, "evaluate", "seed"),
        ("model", "retention"),
    ),
}


def chain(spec: RunSpec) -> list[Step]:
    """All steps of a run, in an order in which each comes after its parents."""
    steps = [*_prepared(spec), Step("validate", 0)]
    for i in range(1, spec.iterations + 1):
        steps.append(Step("retrieve", i))
        steps += [Step("judge", i, shard) for shard in range(spec.judge.shards)]
        steps += [Step("mine", i), Step("finetune", i), Step("validate", i)]
    return [*steps, Step("evaluate")]


def _prepared(spec: RunSpec) -> list[Step]:
    """The steps that make the corpus and its questions."""
    shards = range(spec.generate.shards) if spec.generate else ()
    return [Step("prepare"), *(Step("generate", None, shard) for shard in shards)]


def parents(spec: RunSpec, step: Step) -> list[Step]:
    """The steps whose outputs ``step`` reads."""
    i, prepared = step.iteration, _prepared(spec)
    match step.stage:
        case "prepare":
            return []
        case "generate":
            return [Step("prepare")]
        case "retrieve":
            assert i is not None
            return prepared if i == 1 else [*prepared, Step("finetune", i - 1)]
        case "judge":
            return [*prepared, Step("retrieve", i)]
        case "mine":
            assert i is not None
            # Of earlier iterations too: what was graded relevant then stays protected, be it a candidate now or not.
            judged = [Step("judge", j, shard) for j in range(1, i + 1) for shard in range(spec.judge.shards)]
            earlier = [Step("mine", i - 1)] if i > 1 and spec.mine.accumulate else []
            return [*prepared, Step("retrieve", i), *judged, *earlier]
        case "finetune":
            assert i is not None
            earlier = [Step("finetune", i - 1)] if i > 1 and spec.finetune.start == "previous" else []
            return [Step("mine", i), *earlier]
        case "validate":
            return prepared if i == 0 else [*prepared, Step("finetune", i)]
        case "evaluate":
            return [step for step in chain(spec) if step.stage != "evaluate"]
    raise ValueError(f"no such stage: {step.stage}")


@dataclass(frozen=True)
class StepState:
    """Where a step stands. ``key`` is None while a parent is unfinished. ``stale`` says why an older result is void."""

    step: Step
    state: State
    key: str | None = None
    inputs: Mapping[str, str] | None = None
    stale: str | None = None


def survey(spec: RunSpec, manifests: Manifests, external: Mapping[str, str]) -> list[StepState]:
    """Where every step of the run stands, in chain order.

    ``external`` gives digests of what comes from outside ("source", "model", "retention"). One that is not given is
    trusted to be what a step's manifest recorded.
    """
    done: set[Step] = set()
    states = []
    for step in chain(spec):
        manifest = manifests.get(step.name)
        above = parents(spec, step)
        if not all(parent in done for parent in above):
            states.append(StepState(step, "waiting", stale="an earlier step is to be done" if manifest else None))
            continue
        inputs = {parent.name: outputs_digest(manifests[parent.name]) for parent in above}
        recorded = manifest["external"] if manifest else {}
        outside = {name: external.get(name, recorded.get(name, "")) for name in STAGES[step.stage].external}
        key = step_key(spec, step, inputs, outside)
        if manifest and manifest["key"] == key:
            done.add(step)
            states.append(StepState(step, "done", key, inputs))
        else:
            why = _what_changed(spec, step, manifest, inputs, outside) if manifest else None
            states.append(StepState(step, "ready", key, inputs, why))
    return states


def next_steps(states: list[StepState]) -> list[StepState]:
    """What can run now: the first ready step, and with a shard all ready shards of the same stage and iteration."""
    ready = [state for state in states if state.state == "ready"]
    if not ready:
        return []
    first = ready[0].step
    return [state for state in ready if state.step[:2] == first[:2]]


def step_key(spec: RunSpec, step: Step, inputs: Mapping[str, str], outside: Mapping[str, str]) -> str:
    """Hex digest of all that a step's result depends on."""
    content = {
        "format": FORMAT,
        "step": step.name,
        "settings": spec.settings(*STAGES[step.stage].settings),
        "inputs": dict(inputs),
        "external": dict(outside),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def outputs_digest(manifest: Mapping[str, Any]) -> str:
    """Hex digest over a finished step's outputs: their keys and contents."""
    entries = sorted((entry["key"], entry["sha256"]) for entry in manifest["outputs"])
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _what_changed(
    spec: RunSpec,
    step: Step,
    manifest: Mapping[str, Any],
    inputs: Mapping[str, str],
    outside: Mapping[str, str],
) -> str:
    before, now = _flat(manifest["settings"]), _flat(spec.settings(*STAGES[step.stage].settings))
    changes = [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    changes += [f"{name} gave other outputs" for name in inputs if manifest["inputs"].get(name) != inputs[name]]
    changes += [f"the {name} changed" for name in outside if manifest["external"].get(name) != outside[name]]
    return "; ".join(changes) or "it was made by another version of Pyrite"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
