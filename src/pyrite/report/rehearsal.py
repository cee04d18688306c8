"""The noise rehearsal (``make bench-noise``): the share of the gain that is left if the judge errs.

``rehearsal.yaml`` has its results. ``scripts/rehearsal_table.py`` writes it.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from pyrite.evaluation.scoring import METRICS
from pyrite.report import formatting

#: No rehearsed judge is near a kappa that differs by more: half the usual step between rehearsed kappas (0.2), and the
#: difference between a measured kappa and the setting.
MAX_KAPPA_DIFFERENCE = 0.12

#: A larger difference between a judge's bias and that of the rehearsed judge, in grades, is pointed out.
MAX_BIAS_DIFFERENCE = 0.5

_ANSWERS = {"known": "if mining knows the answers", "hidden": "if it does not"}


@cache
def table() -> Mapping[str, Any]:
    """The content of rehearsal.yaml: ``data``, ``pyrite`` (version) and ``rows``."""
    found: dict[str, Any] = yaml.safe_load((files("pyrite.report") / "rehearsal.yaml").read_text(encoding="utf-8"))
    return found


def nearest(kappa: float, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All rows with the ``kappa`` setting of the row whose measured kappa is nearest to this one.

    Empty if that kappa differs by more than MAX_KAPPA_DIFFERENCE.
    """
    closest = min(rows, key=lambda row: abs(row["measured"] - kappa), default=None)
    if closest is None or abs(closest["measured"] - kappa) > MAX_KAPPA_DIFFERENCE:
        return []
    return [row for row in rows if row["kappa"] == closest["kappa"]]


def sentence(kappa: float | None, bias: float | None) -> str | None:
    """What the rehearsal found for judges like the one with this measured kappa and bias; None if it has no rows."""
    found = table()
    if kappa is None or not found["rows"]:
        return None
    rows = nearest(kappa, found["rows"])
    if not rows:
        rehearsed = ", ".join(formatting.number(each, 2) for each in sorted({row["kappa"] for row in found["rows"]}))
        return (
            f"Rehearsal: no simulated judge has a kappa near {formatting.number(kappa, 2)} (simulated: {rehearsed}), "
            "so the share of the gain that such a judge leaves is not known."
        )
    shares = "; ".join(
        f"{_ANSWERS[answers]}, {' or '.join(_share(row) for row in rows if row['answers'] == answers)}"
        for answers in dict.fromkeys(row["answers"] for row in rows)
    )
    runs = sum(row["runs"] for row in rows)
    below = sum(max(row["below_base"].values()) for row in rows)
    biases = [row["bias"] for row in rows]
    note = ""
    if bias is not None and min(abs(bias - each) for each in biases) > MAX_BIAS_DIFFERENCE:
        note = (
            f" This judge's bias is {formatting.signed(bias, 2)} grades, the simulated ones' {_range(biases)}: a bias "
            "changes the result."
        )
    return (
        f"Rehearsal: judges with a simulated kappa of {formatting.number(rows[0]['kappa'], 2)}, the nearest to "
        f"{formatting.number(kappa, 2)}, left this share of the gain in {METRICS['mrr@5'].label}: {shares}. "
        f"{below} of {formatting.plural(runs, 'run')} handed over a model below base. This is a simulation on "
        f"{found['data']} (Pyrite {found['pyrite']}), not a promise for this data.{note}"
    )


def _share(row: Mapping[str, Any]) -> str:
    share = row["gain_share"]["mrr@5"]
    mean, worst = (formatting.percent(share[name], sign=False) for name in ("mean", "worst"))
    lowest = f"lowest of {share['pairs']} runs {worst}" if share["pairs"] > 1 else "one run"
    similarity = f"similarity {formatting.number(row['similarity'], 1)}" if row["similarity"] else "similarity 0"
    return f"{mean} ({lowest}; {similarity})"


def _range(values: Sequence[float]) -> str:
    low, high = (formatting.signed(each(values), 2) for each in (min, max))
    return low if low == high else f"{low} to {high}"
