"""The results, cost and conditions in a run's status: pure functions."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pyrite.controller.observed import Stored, read_time
from pyrite.controller.resource import Condition, ProbeResult, Score, Status, TrainingRun
from pyrite.controller.settings import CostSettings
from pyrite.plan import BASE, failed_checks

#: Number of latest iterations whose scores are listed, in addition to the base and the best model.
_MAX_LATEST = 4


def results(run: TrainingRun, stored: Stored, store: str) -> Status:
    """The run's status with the results of its finished steps."""
    manifests = stored.manifests
    scores = [
        Score(model=model, mrr=round(values["mrr@5"], 4), dcg=round(values["dcg@5"], 4))
        for name, manifest in sorted(manifests.items(), key=_by_iteration)
        if name.startswith("validate-")
        for model, values in manifest["summary"]["val"].items()
    ]
    base = next((score for score in scores if score.model == BASE), None)
    best = max(scores, key=lambda score: score.mrr + score.dcg, default=None)
    folder = f"{store}/runs/{run.name}"
    message = ""
    changes: dict[str, Any] = {"model_uri": "", "report_uri": "", "gate_passed": None}
    if "evaluate" in manifests:
        summary = manifests["evaluate"]["summary"]
        best = next((score for score in scores if score.model == summary["chosen"]), best)
        message = _verdict(summary)
        changes = {"model_uri": f"{folder}/model", "report_uri": f"{folder}/report/report.html"}
        changes["gate_passed"] = summary["passed"]
    return run.status.model_copy(
        update={
            **changes,
            "probe": _probe(run, stored.probe, f"{folder}/probe/probe.html"),
            "message": message,
            "scores": _selected(scores, base, best),
            "best": best.model if best else "",
            "best_mrr": _mrr_with_gain(best, base),
        }
    )


def _probe(run: TrainingRun, found: Mapping[str, Any] | None, page: str) -> ProbeResult | None:
    if found is None:
        return None
    before, finished = run.status.probe, found["finished"]
    return ProbeResult(
        verdict="unclear" if found["go"] is None else "go" if found["go"] else "no-go",
        failed=failed_checks(found),
        page_uri=page,
        finished=finished,
        retry=before.retry if before and before.finished == finished else run.control.retry,
    )


def _by_iteration(entry: tuple[str, Any]) -> int:
    return int(entry[0].rpartition("-")[2]) if entry[0].startswith("validate-") else 0


def _selected(scores: list[Score], base: Score | None, best: Score | None) -> list[Score]:
    iterations = [score for score in scores if "@" not in score.model and score is not base]
    wanted = [base, best, *iterations[-_MAX_LATEST:]]
    return [score for score in scores if any(score is other for other in wanted)]


def _mrr_with_gain(best: Score | None, base: Score | None) -> str:
    if best is None:
        return ""
    text = f"{best.mrr:.3f}"
    return text if base is None or best is base or not base.mrr else f"{text} ({best.mrr / base.mrr - 1:+.0%})"


def _verdict(summary: dict[str, Any]) -> str:
    chosen, test = summary["chosen"], summary["test"]
    gate = "the gain meets the gate" if summary["passed"] else "the gain does not meet the gate"
    changes = ", ".join(
        f"{label} {test[BASE][metric]:.3f} -> {test[chosen][metric]:.3f}"
        for label, metric in (("MRR@5", "mrr@5"), ("DCG@5", "dcg@5"))
    )
    return f"{chosen} on test: {changes}; {gate}."


def active_hours(status: Status, now: datetime) -> float:
    """Hours that the run has used nodes."""
    if status.active_since is None:
        return status.hours
    return status.hours + (now - read_time(status.active_since)).total_seconds() / 3600


def budget(run: TrainingRun, cost: CostSettings) -> float:
    """The run's budget in dollars; 0: none."""
    return run.control.budget_dollars or cost.budget_dollars


def over_budget(run: TrainingRun, cost: CostSettings, now: datetime) -> str:
    """That the run's estimated cost exceeds its budget, and what to do; empty if it does not."""
    limit = budget(run, cost)
    if not limit or active_hours(run.status, now) * cost.dollars_per_hour <= limit:
        return ""
    return (
        f"the run's estimated cost exceeds its budget of ${limit:,.2f}. Finished steps and judgments are saved. To "
        f"continue, raise spec.budget_dollars (`kubectl edit tr {run.name}`) or the chart's cost.budgetDollars."
    )


def with_cost(before: Status, status: Status, active: bool, cost: CostSettings, now: datetime) -> Status:
    """``status`` with its hours and cost. ``active``: whether the run uses nodes from now on."""
    changes: dict[str, Any] = {}
    if active != (before.active_since is not None):
        since = now.isoformat(timespec="seconds") if active else None
        changes = {"hours": active_hours(before, now), "active_since": since}
    if cost.dollars_per_hour and (changes or (status.phase, status.step) != (before.phase, before.step)):
        changes["cost"] = f"${active_hours(before, now) * cost.dollars_per_hour:,.2f}"
    return status.model_copy(update=changes)


def conditions(before: Status, status: Status, problem: str, run: TrainingRun, now: datetime) -> list[Condition]:
    """The Kubernetes conditions of ``status``. A condition whose value is unchanged keeps its transition time."""
    phase = status.phase
    failed = status.message if phase == "Failed" else ""
    complete = phase == "Succeeded"
    wanted: list[tuple[str, bool | None, str, str]] = [
        ("Progressing", phase in ("Pending", "Waiting", "Running"), phase, status.message),
        (
            "Degraded",
            bool(failed or problem),
            "Failed" if failed else "Stuck" if problem else "Healthy",
            failed or problem,
        ),
        ("TargetReached", status.gate_passed, "Evaluated" if complete else "NotEvaluated", ""),
        ("Complete", complete, phase, ""),
        ("OverBudget", bool(status.over_budget), "Estimated", status.over_budget),
    ]
    if probe := status.probe:
        accepted = None if probe.verdict == "unclear" else probe.verdict == "go"
        wanted.append(("JudgeAccepted", accepted, "Probed", probe.failed))
    else:
        wanted.append(("JudgeAccepted", None, "NotProbed", ""))
    old = {condition.type: condition for condition in before.conditions}
    result = []
    for kind, value, reason, message in wanted:
        state = "Unknown" if value is None else "True" if value else "False"
        same = kind in old and old[kind].status == state
        since = old[kind].last_transition_time if same else now.isoformat(timespec="seconds")
        result.append(
            Condition(
                type=kind,
                status=state,
                reason=reason,
                message=message,
                last_transition_time=since,
                observed_generation=run.generation,
            )
        )
    return result
