"""What the status shows of results: scores, the model that is ahead, addresses, cost, conditions. Pure."""

from datetime import datetime
from typing import Any

from pyrite.controller.observed import Stored
from pyrite.controller.resource import Condition, Score, Status, TrainingRun
from pyrite.controller.settings import Settings
from pyrite.manifest_metrics import step_seconds
from pyrite.plan import BASE

#: Scores shown beside the base's and the best one's, however many iterations there are.
_LATEST = 4


def results(run: TrainingRun, stored: Stored, settings: Settings, store: str) -> Status:
    """The run's status with what its finished steps say."""
    finished = {state.step.name for state in stored.states if state.state == "done"}
    manifests = {name: manifest for name, manifest in stored.manifests.items() if name in finished}
    scores = [
        Score(model=model, mrr=round(values["mrr@5"], 4), dcg=round(values["dcg@5"], 4))
        for name, manifest in sorted(manifests.items(), key=_by_iteration)
        if name.startswith("validate-")
        for model, values in manifest["summary"]["val"].items()
    ]
    base = next((score for score in scores if score.model == BASE), None)
    best = max(scores, key=lambda score: score.mrr + score.dcg, default=None)
    place = f"{store}/runs/{run.name}"
    message = ""
    changes: dict[str, Any] = {"model_uri": "", "report_uri": "", "gate_passed": None}
    if "evaluate" in manifests:
        summary = manifests["evaluate"]["summary"]
        best = next((score for score in scores if score.model == summary["chosen"]), best)
        message = _verdict(summary)
        changes = {"model_uri": f"{place}/model", "report_uri": f"{place}/report/report.html"}
        changes["gate_passed"] = summary["passed"]
    return run.status.model_copy(
        update={
            **changes,
            "message": message,
            "scores": _few(scores, base, best),
            "best": best.model if best else "",
            "best_mrr": _against(best, base),
            "cost": _cost(manifests, settings.cost.dollars_per_hour),
        }
    )


def _by_iteration(entry: tuple[str, Any]) -> int:
    return int(entry[0].rpartition("-")[2]) if entry[0].startswith("validate-") else 0


def _few(scores: list[Score], base: Score | None, best: Score | None) -> list[Score]:
    whole = [score for score in scores if "@" not in score.model and score is not base]
    wanted = [base, best, *whole[-_LATEST:]]
    return [score for score in scores if any(score is other for other in wanted)]


def _against(best: Score | None, base: Score | None) -> str:
    if best is None:
        return ""
    text = f"{best.mrr:.3f}"
    return text if base is None or best is base or not base.mrr else f"{text} ({best.mrr / base.mrr - 1:+.0%})"


def _verdict(summary: dict[str, Any]) -> str:
    chosen, test = summary["chosen"], summary["test"]
    words = "the gain meets the gate" if summary["passed"] else "the gain does not meet the gate"
    changes = ", ".join(
        f"{label} {test[BASE][metric]:.3f} -> {test[chosen][metric]:.3f}"
        for label, metric in (("MRR@5", "mrr@5"), ("DCG@5", "dcg@5"))
    )
    return f"{chosen} on test: {changes}; {words}."


def _cost(manifests: dict[str, Any], dollars_per_hour: float) -> str:
    """The hours of its steps, at the nodes' price."""
    if not dollars_per_hour:
        return ""
    return f"${sum(step_seconds(manifests).values()) / 3600 * dollars_per_hour:,.2f}"


def conditions(before: Status, status: Status, trouble: str, run: TrainingRun, now: datetime) -> list[Condition]:
    """Kubernetes' conditions of ``status``; the time of one that has not changed stays."""
    phase = status.phase
    failed = status.message if phase == "Failed" else ""
    complete = phase == "Succeeded"
    wanted: list[tuple[str, bool | None, str, str]] = [
        ("Progressing", phase in ("Pending", "Waiting", "Running"), phase, status.message),
        (
            "Degraded",
            bool(failed or trouble),
            "Failed" if failed else "Stuck" if trouble else "Well",
            failed or trouble,
        ),
        ("TargetReached", status.gate_passed, "Evaluated" if complete else "NotEvaluated", ""),
        ("Complete", complete, phase, ""),
    ]
    old = {condition.type: condition for condition in before.conditions}
    result = []
    for kind, value, reason, message in wanted:
        word = "Unknown" if value is None else "True" if value else "False"
        same = kind in old and old[kind].status == word
        since = old[kind].last_transition_time if same else now.isoformat(timespec="seconds")
        result.append(
            Condition(
                type=kind,
                status=word,
                reason=reason,
                message=message,
                last_transition_time=since,
                observed_generation=run.generation,
            )
        )
    return result
