"""The results and conditions in a run's status: pure functions."""

from datetime import datetime
from typing import Any

from pyrite.controller.observed import Stored
from pyrite.controller.resource import Condition, Score, Status, TrainingRun
from pyrite.controller.settings import Settings
from pyrite.manifest_metrics import step_seconds
from pyrite.plan import BASE

#: Number of latest iterations whose scores are listed, in addition to the base and the best model.
_MAX_LATEST = 4


def results(run: TrainingRun, stored: Stored, settings: Settings, store: str) -> Status:
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
            "message": message,
            "scores": _selected(scores, base, best),
            "best": best.model if best else "",
            "best_mrr": _mrr_with_gain(best, base),
            "cost": _cost(manifests, settings.cost.dollars_per_hour),
        }
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


def _cost(manifests: dict[str, Any], dollars_per_hour: float) -> str:
    """Hours of the finished steps times the price of an hour."""
    if not dollars_per_hour:
        return ""
    return f"${sum(step_seconds(manifests).values()) / 3600 * dollars_per_hour:,.2f}"


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
    ]
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
