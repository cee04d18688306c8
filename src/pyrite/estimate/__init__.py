"""Estimates the time, memory, disk and cost of a run before it starts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from pyrite.costs import DEFAULT_MACHINE, JudgeCost, Machine, machine
from pyrite.embedding.encoder import Encoder
from pyrite.embedding.models import base_folder, size
from pyrite.estimate import llm, speed
from pyrite.estimate.footprint import Footprint, Needs
from pyrite.estimate.workload import Workload, read_workload
from pyrite.executors.step import Run
from pyrite.plan import Step, chain, survey
from pyrite.sources import retention
from pyrite.spec import CascadeJudgeSpec

#: Until a step's process has imported its modules and read its settings.
_START_SECONDS = 3.0


@dataclass(frozen=True)
class StageEstimate:
    """The estimate of all steps of a stage.

    Attributes:
        stage: its name.
        steps: number of steps.
        memory: peak memory of a step in bytes.
        disk: bytes of what a step reads and writes, which a pod has on its own disk.
        here: seconds on this machine, one step after the other; None if the stage calls an LLM.
        there: seconds on the machines of the estimate, with steps in parallel.
        dollars: the price of the nodes that the stage needs, for that time.
    """

    stage: str
    steps: int
    memory: float
    disk: float
    here: float | None
    there: float
    dollars: float


@dataclass(frozen=True)
class Estimate:
    """The estimate of a run.

    Attributes:
        needs: what each step needs.
        seconds: expected time of each step: on the LLM's servers if it calls one, else on this machine.
        stages: the estimate of each stage, in the order of their first steps.
        store: bytes that the run leaves in the store.
        summary: data, remaining time without judging, and the cost of generating questions, as text.
        judging: the cost of the remaining LLM judgments as text; empty if there are none.
        all_judging: the cost of the LLM judgments of all iterations; None if the judge calls no server.
        assessing: evaluate.judge and the cost of its judgments as text; empty without it, or if it has finished.
    """

    needs: Mapping[Step, Needs]
    seconds: Mapping[Step, float]
    stages: Sequence[StageEstimate]
    store: float
    summary: str
    judging: str
    all_judging: JudgeCost | None
    assessing: str


def estimate(
    run: Run,
    on: Machine | None = None,
    machines: int = 1,
    work: Workload | None = None,
    here: speed.Speed | None = None,
) -> Estimate:
    """Estimate a run.

    Args:
        on: the type of the machines that train and serve the LLM, by default DEFAULT_MACHINE.
        machines: their number.
        work: the size of the data, by default that of the run's prepared tables, or of its source.
        here: the speed of this machine, by default measured, which takes seconds.

    Raises:
        UserError: the source, the base model or a retention set cannot be read, or resources.device is cuda without a
            GPU.
    """
    spec, on = run.spec, on or machine(DEFAULT_MACHINE)
    manifests = {} if work else run.manifests()
    work = work or read_workload(run, manifests)
    base = base_folder(spec.model.base, spec.model.revision)
    model = size(base)
    here = here or speed.measure_speed(Encoder(base, base, spec, run.store), work.passage_characters, model)
    sets = spec.evaluate.retention
    texts = (_characters([sets.path]), _characters(sets.report)) if sets else (0, 0)
    footprint = Footprint(spec, work, model, *texts)
    needs = {step: footprint.of(step) for step in chain(spec)}
    generating = llm.generation_cost(run, work, on, machines)
    judging = llm.judging_cost(run, work, on, machines)
    assessing = llm.assessment_cost(run, work, on, machines)
    # Seconds of a step on the LLM's servers.
    calling = {
        "generate": generating.hours * 3600 / spec.generate.shards if generating and spec.generate else None,
        "judge": judging.hours * 3600 / spec.iterations / spec.judge.shards if judging else None,
        "assess": assessing.hours * 3600 if assessing else None,
    }
    seconds = {}
    for step, each in needs.items():
        of_llm = calling.get(step.stage)
        seconds[step] = _START_SECONDS + (here.seconds(each) if of_llm is None else of_llm)
    there = speed.gpu_speed(on, model)
    stages = []
    for stage in dict.fromkeys(step.stage for step in needs):
        of_stage = {step: each for step, each in needs.items() if step.stage == stage}
        processes = spec.finetune.gpus if stage == "finetune" else 1
        elapsed, price = _on_machines(of_stage, calling.get(stage), there, on, machines, processes)
        stages.append(
            StageEstimate(
                stage,
                len(of_stage),
                memory=max(each.memory for each in of_stage.values()),
                disk=max(each.disk for each in of_stage.values()),
                here=None if calling.get(stage) is not None else sum(seconds[step] for step in of_stage),
                there=elapsed,
                dollars=elapsed / 3600 * price,
            )
        )
    todo = [state.step for state in survey(spec, manifests, run.external) if state.state != "done"]
    left = sum(seconds[step] for step in todo if calling.get(step.stage) is None)
    summary = (
        f"{_describe(work)}; about {llm.about(left)} left on this machine with this model of "
        f"{model.weights / 1e6:,.0f} million weights (it encodes {1 / here.per_encoded:,.0f} characters a second)."
    )
    if spec.judge.kind == "cascade" or spec.judge.identity["errors"]:
        summary += f" Judge: {spec.judge.label}."
    if isinstance(spec.judge, CascadeJudgeSpec) and work.train / spec.judge.shards <= spec.judge.pilot:
        summary += f" {spec.judge.idle_first(round(work.train / spec.judge.shards))}"
    if generating and any(step.stage == "generate" for step in todo):
        summary += f" {llm.describe_generating(generating, on, machines)}"
    shards = sum(step.stage == "judge" for step in todo)
    share = shards / spec.iterations / spec.judge.shards
    text = f"Judging: {llm.describe_judging(judging, share, on, machines)}" if judging and share else ""
    if text and spec.judge.kind == "cascade":
        text += f" {llm.CASCADE_NOTE}"
    assess = llm.describe_assessing(run, assessing, on, machines) if assessing and Step("assess") in todo else ""
    store = sum(each.stored for each in needs.values())
    return Estimate(needs, seconds, stages, store, summary, text, judging, assess)


def _on_machines(
    needs: Mapping[Step, Needs],
    of_llm: float | None,
    there: speed.Speed,
    on: Machine,
    machines: int,
    processes: int,
) -> tuple[float, float]:
    """How long the steps of a stage take on the machines in seconds, and the price of the nodes in dollars per hour.

    Args:
        needs: of the steps, in order of iterations. Those of one iteration run at the same time.
        of_llm: seconds that all servers together need for a step; None if it calls no LLM.
        there: the speed of a GPU.
        processes: GPUs that a step uses.
    """
    iterations = [list(group) for _, group in groupby(needs, key=lambda step: step.iteration)]
    if of_llm is not None:
        elapsed = sum(_START_SECONDS + of_llm * len(steps) for steps in iterations)
        return elapsed, on.dollars_per_hour * machines
    uses_gpus = any(each.uses_device for each in needs.values())
    most = max(map(len, iterations)) * processes
    at_once = min(most, on.servers * machines) if uses_gpus else most
    elapsed = sum(
        math.ceil(len(steps) * processes / at_once)
        * (_START_SECONDS + max(there.seconds(needs[step]) for step in steps) / processes)
        for steps in iterations
    )
    if uses_gpus:
        return elapsed, on.dollars_per_hour * math.ceil(at_once / on.servers)
    return elapsed, on.cpu_dollars_per_hour


def _describe(work: Workload) -> str:
    queries = f"{work.train:,.0f} training queries"
    if work.to_generate:
        queries = f"at most {queries} ({work.to_generate:,.0f} of them not generated yet; filters drop some)"
    return f"{work.passages:,.0f} passages, {queries}"


def _characters(paths: Sequence[str]) -> int:
    """Characters of the documents of retention sets."""
    return sum(len(document.text) for path in paths for document in retention.read(path)[0])
