"""Whether the model of a finished run may be published, and its lineage."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyrite.embedding.models import base_digest
from pyrite.errors import UserError
from pyrite.evaluation.selection import BASE
from pyrite.executors.step import Run
from pyrite.plan import outputs_digest
from pyrite.report import formatting
from pyrite.stages.context import fetch_verified

REPORT = "report/report.json"


def read_result(run: Run) -> dict[str, Any]:
    """The report of a finished run whose settings, steps and base model have not changed since.

    Raises:
        UserError: the run is not finished, or is outdated.
        PyriteError: the report is missing or damaged.
    """
    name, manifests = run.spec.name, run.manifests()
    if "evaluate" not in manifests:
        raise UserError(f"run {name} has not finished; `pyrite status {name}` shows its progress.")
    # The base model must be that of training: domains are selected by its embeddings.
    with_base = replace(run, external={**run.external, "model": base_digest(run.spec.model)})
    outdated = next((state for state in with_base.survey() if state.state != "done"), None)
    if outdated:
        why = f" ({outdated.stale})" if outdated.stale else ""
        raise UserError(
            f"run {name} has changed since its model was chosen: {outdated.step.label} must run again{why}. Finish the "
            "run with `pyrite train`, then publish it."
        )
    entry = next(entry for entry in manifests["evaluate"]["outputs"] if entry["key"] == REPORT)
    report: dict[str, Any] = json.loads(fetch_verified(run.store, run.prefix, entry).read_bytes())
    return report


def check_gate(report: Mapping[str, Any], force: str | None) -> str | None:
    """The reason for publishing a model that did not meet the gate; None if the model met it.

    Raises:
        UserError: the model did not meet the gate and ``force`` is unset, or ``force`` is empty.
    """
    if force is not None and not force.strip():
        raise UserError("--force needs a reason, which is recorded: --force 'needed for the demo'.")
    if report["gate"]["passed"]:
        return None
    if force is None:
        what = "chose the base model" if report["chosen"] == BASE else "did not meet its gate"
        raise UserError(
            f"run {report['name']} {what}, so it is not published: {report['verdict']} To publish the model in spite "
            "of that, give a reason: --force REASON."
        )
    return force.strip()


def read_parity(folder: Path, model_digest: str) -> dict[str, Any]:
    """The content of ``parity.json`` in a ``folder`` with an export of the model.

    Raises:
        UserError: there is none, it is not a JSON object, or it is about another model.
    """
    path = folder / "parity.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"--export: {path} does not exist. Give the folder of an export with its parity.json."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"--export: {path} cannot be read as JSON ({error}). Export the model again.") from None
    if not isinstance(content, dict):
        raise UserError(f"--export: {path} is not a JSON object. Export the model again.")
    if (found := content.get("model_digest")) != model_digest:
        raise UserError(
            f"--export: {path} is about another model (model_digest {str(found)[:12]}, this run's "
            f"model has {model_digest[:12]}). Export the chosen model of this run."
        )
    return content


def lineage(run: Run, report: dict[str, Any]) -> dict[str, Any]:
    """Where the chosen model comes from, and how good it is, as JSON values.

    ``metrics`` compares the chosen model with the base model on test; empty if that is the base model. ``retention``
    has the relative change of each retention set, and its one-sided bound.
    """
    manifests, spec = run.manifests(), run.spec
    settings = spec.model_dump(mode="json", by_alias=True)
    chosen = report["chosen"]
    return {
        "run": spec.name,
        "chosen": chosen,
        "base": {**settings["model"], "digest": base_digest(spec.model)},
        "data": {
            "source": manifests["prepare"]["external"].get("source", ""),
            "prepared": outputs_digest(manifests["prepare"]),
            "test": report["test"],
        },
        "judges": _judges(manifests),
        "seed": spec.seed,
        "settings": settings,
        "settings_digest": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "packages": manifests["evaluate"]["versions"],
        "finished": manifests["evaluate"]["finished"],
        "means": report["means"]["test"][chosen],
        "metrics": formatting.headline(report).get(chosen, {}),
        "retention": [
            {"set": row["set"], "change": row["relative"], "bound": row["bound"]} for row in report["retention_sets"]
        ]
        if chosen != BASE
        else [],
        "gate": report["gate"],
        "verdict": report["verdict"],
    }


def _judges(manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The fingerprints of the judges that graded the run's pairs, sorted."""
    summaries = [manifest["summary"] for name, manifest in manifests.items() if name.startswith("judge-")]
    summaries += [summary["first"] for summary in summaries if "first" in summary]
    return sorted({summary["judge"] for summary in summaries if "judge" in summary})
