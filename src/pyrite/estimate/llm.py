"""The cost of the LLM calls of a run: generated questions, judgments, and those of evaluate.judge."""

from pyrite.costs import GenerateCost, JudgeCost, Machine, generate_cost, judge_cost, pairs_per_query
from pyrite.estimate.probes import probed
from pyrite.estimate.workload import Workload, few_shot, from_passages, pool_size
from pyrite.executors.step import Run
from pyrite.judges import fingerprint, requests_per_pair
from pyrite.judges.base import short

#: About the cost of a cascade.
CASCADE_NOTE = "That is the maximum for judge.second, if judge.first decides nothing; judge.first is not included."


def generation_cost(run: Run, work: Workload, on: Machine, machines: int) -> GenerateCost | None:
    """The cost of generating the questions of all shards; None if the run generates none."""
    spec = run.spec
    if not spec.generate:
        return None
    count = sum(from_passages(spec, work).values())
    checking = None
    if spec.generate.answerable_grade is not None and spec.judge.needs_server:
        how = on, machines, probed(run, any_calibration=True), requests_per_pair(spec.main_judge)
        checking = judge_cost(count, 1, 1, work.passage_characters, *how)
    shots = spec.generate.shots
    return generate_cost(count, few_shot(spec), shots, work.passage_characters, on, machines, checking)


def judging_cost(run: Run, work: Workload, on: Machine, machines: int) -> JudgeCost | None:
    """The cost of a run's LLM judgments, at the speed that a probe of the same judge measured, if there is one.

    None if the judge needs no server.
    """
    spec = run.spec
    if not spec.judge.needs_server:
        return None
    # Without a need for their grades, at most 100 known answers are judged.
    known = work.known if spec.judges_known_answers else 0
    per_query = pairs_per_query(spec.judge, spec.retrieve.range_max, known)
    how = on, machines, probed(run, any_calibration=True), requests_per_pair(spec.main_judge)
    return judge_cost(work.train, per_query, spec.iterations, work.passage_characters, *how)


def assessment_cost(run: Run, work: Workload, on: Machine, machines: int) -> JudgeCost | None:
    """The cost of the judgments of evaluate.judge; None without that judge."""
    evaluator = run.spec.evaluation_judge
    if evaluator is None:
        return None
    how = on, machines, None, requests_per_pair(evaluator)
    return judge_cost(work.held_out, pool_size(work, run.spec.iterations), 1, work.passage_characters, *how)


def describe_generating(cost: GenerateCost, on: Machine, machines: int) -> str:
    """Describe the cost of generating questions."""
    checks = f" and {cost.checks:,} checks that a passage answers its question" if cost.checks else ""
    return (
        f"Generating questions: at most {cost.questions + cost.checks:,} LLM calls ({cost.questions:,} for a "
        f"question{checks}), {cost.prompt_tokens:,} prompt tokens and {cost.written_tokens:,} generated; about "
        f"{about(cost.hours * 3600)} and {cost.dollars:,.2f} dollars on {machines} x {on.name}, by estimate."
    )


def describe_judging(cost: JudgeCost, share: float, on: Machine, machines: int) -> str:
    """Describe the cost of ``share`` of the judging."""
    how = f"{machines} x {on.name}, " + ("at the speed that the probe measured" if cost.measured else "by estimate")
    requests = f" of {cost.requests} requests each" if cost.requests > 1 else ""
    return (
        f"at most {cost.pairs * share:,.0f} pairs{requests}, {cost.prompt_tokens * share:,.0f} prompt tokens; about "
        f"{about(cost.hours * share * 3600)} and {cost.dollars * share:,.2f} dollars on {how}."
    )


def describe_assessing(run: Run, cost: JudgeCost, on: Machine, machines: int) -> str:
    """Describe evaluate.judge and the cost of its judgments."""
    evaluator = run.spec.evaluation_judge
    assert evaluator is not None
    who = f"{evaluator.spec.label} (fingerprint {short(fingerprint(evaluator))})"
    return (
        f"Evaluation by {who}: about {cost.pairs:,} pairs, {cost.prompt_tokens:,} prompt tokens; about "
        f"{about(cost.hours * 3600)} and {cost.dollars:,.2f} dollars on {machines} x {on.name}, by estimate."
    )


def about(seconds: float) -> str:
    """A duration, roughly: ``a minute``, ``12 minutes``, ``3.4 hours``, ``155 days``."""
    if seconds < 90:
        return "a minute"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 100 * 3600 else f"{seconds / 86_400:,.0f} days"
