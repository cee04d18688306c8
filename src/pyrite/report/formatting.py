"""How the report says things: numbers, names of models, and the verdict. Page and terminal share it.

Plain ASCII, so that any terminal can print it; the page sets the hyphen before a number as a minus sign.
"""

import math
import re
from datetime import datetime
from typing import Any

from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import BASE, label

NONE = "-"


def minus(text: str) -> str:
    """The text as a page sets it: minus signs before numbers, no line break inside ``p = .034``."""
    text = re.sub(r"(?<![\w.)])-(?=[\d.])", "\N{MINUS SIGN}", text)
    return re.sub(r"\bp ([<=]) (?=\.)", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)


def number(value: float | None, digits: int = 3) -> str:
    """0.5652 as ``.565``; 1.0231 as ``1.023``."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:.{digits}f}"
    text = text.lstrip("-") if float(text) == 0 else text
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def signed(value: float | None, digits: int = 3) -> str:
    """A difference: ``+.183``, ``-.020``, ``.000``."""
    text = number(value, digits)
    return text if text == NONE or text.startswith("-") or float(text) == 0 else f"+{text}"


def percent(share: float | None, sign: bool = True) -> str:
    """A share as a percentage, to a tenth where it is below 10: ``+32%``, ``+8.4%``, ``-0.5%``."""
    if share is None or not math.isfinite(share):
        return NONE
    digits = 0 if abs(share) >= 0.0995 else 1
    text = f"{100 * share:+.{digits}f}" if sign else f"{100 * share:.{digits}f}"
    return f"{'0' if float(text) == 0 else text}%"


def direction(of: dict[str, Any]) -> str:
    """``up`` or ``down`` where the interval of a comparison leaves no doubt, else nothing."""
    low, high = of["difference_interval"]["low"], of["difference_interval"]["high"]
    if low is None or high is None:
        return ""
    return "up" if low > 0 else "down" if high < 0 else ""


def interval(of: dict[str, float | None]) -> str:
    """``+27% to +38%``."""
    if of["low"] is None or of["high"] is None:
        return NONE
    return f"{percent(of['low'])} to {percent(of['high'])}"


def p_value(value: float | None) -> str:
    """``p < .001``, ``p = .034``."""
    if value is None:
        return NONE
    return "p < .001" if value < 0.001 else f"p = {number(min(value, 1.0))}"


def duration(seconds: float | None) -> str:
    """``48 s``, ``6 min 32 s``, ``3 h 05 min``."""
    if seconds is None:
        return NONE
    whole = round(seconds)
    if whole < 1:
        return "under 1 s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def size(count: float | None) -> str:
    """Bytes for a person: ``90.9 MB`` (powers of 1,000)."""
    if count is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError  # the loop always returns


def rate(value: float | None) -> str:
    """A speed with as many digits as it has worth: ``3,120``, ``85``, ``6.3``."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def dollars(value: float) -> str:
    """``6.10``; a price that would read as none is ``under 0.01``."""
    return "under 0.01" if 0 < value < 0.005 else f"{value:,.2f}"


_WAYS = {
    "label_ids": "for one free token, with the probabilities of the four grades",
    "choice": "for one token that is held to the four grades, with their probabilities where the server tells them",
    "logprobs": "for one free token, with the probabilities of the likeliest",
    "text": "for a few words, which are read; there are no probabilities",
}


def decoding_modes(rows: list[dict[str, Any]]) -> str:
    """How the judge was asked: once where it was the same in all iterations."""
    told = [
        (row["iteration"], "; and ".join(_WAYS.get(way, way) for way in row["decoding_modes"]))
        for row in rows
        if row["decoding_modes"]
    ]
    if len({words for _, words in told}) <= 1:
        return told[0][1] if told else "not at all: all pairs were known before"
    return "; ".join(f"in iteration {iteration} {words}" for iteration, words in told)


def change_of_grades(of: dict[str, Any]) -> str:
    """The largest change of a grade's share from one iteration to the next, as ``course`` found it: a sentence."""
    before, after = (percent(of[key], sign=False) for key in ("before", "after"))
    return (
        f"From one iteration to the next, among the pairs that were new in each, the share of grade {of['grade']} "
        f"changed most: from {before} in iteration {of['iteration'] - 1} to {after} in iteration {of['iteration']}."
    )


def when(iso: str | None) -> str:
    """``2026-11-22 22:20 UTC``."""
    try:
        return datetime.fromisoformat(iso or "").strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return NONE


def plural(count: int, one: str, many: str | None = None) -> str:
    """``1 query``, ``1,234 queries``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def humanise(key: str) -> str:
    """A key of a summary as words: ``hard_positives`` to ``hard positives``."""
    return key.replace("_", " ").replace(".", ": ")


def verdict(report: dict[str, Any]) -> str:
    """The run's outcome in one or two sentences, whatever it was."""
    chosen, gate = report["chosen"], report["gate"]
    wanted = _wanted(gate)
    if chosen == BASE:
        return _not_adapted(report)
    mrr, dcg = (report["comparisons"][chosen][metric] for metric in ("mrr@5", "dcg@5"))
    numbers = f"{_moved('mrr@5', mrr)} and DCG@5 {_by(dcg, mrr)}"
    if gate["passed"]:
        verb = "is" if len(set(gate["wanted"].values())) == 1 else "are"
        return f"Adapted: {numbers}; the gate of {wanted} {verb} met."
    missed = "; ".join(_missed(check) for check in gate["checks"] if not check["met"])
    if mrr["difference"] > 0:
        return f"Adapted, but the gate of {wanted} is not met: {numbers}. Missed: {missed}."
    return (
        f"Not confirmed: {label(chosen)} was better on validation, but on test {numbers}; "
        f"the gate of {wanted} is not met."
    )


def _wanted(gate: dict[str, Any]) -> str:
    shares = [f"{percent(share)} {METRICS[metric].label}" for metric, share in gate["wanted"].items()]
    values = list(gate["wanted"].values())
    return percent(values[0]) if len(set(values)) == 1 else " and ".join(shares)


def _missed(check: dict[str, Any]) -> str:
    if check["kind"] == "p":
        return f"p of {number(check['got'])} where {number(check['wanted'])} or less was asked for"
    return f"{METRICS[check['metric']].label} {percent(check['got'])}, {percent(check['wanted'])} asked for"


def _moved(metric: str, of: dict[str, Any]) -> str:
    verb = _verb(of)
    if verb == "stayed":
        return f"{METRICS[metric].label} stayed at {number(of['base'])}"
    details = [percent(of["relative"]), p_value(of["p_value"])]
    if of["relative_interval"]["low"] is not None:
        details.insert(1, f"95% interval {interval(of['relative_interval'])}")
    return f"{METRICS[metric].label} {verb} from {number(of['base'])} to {number(of['other'])} ({', '.join(details)})"


def _by(of: dict[str, Any], before: dict[str, Any]) -> str:
    """``by 31%``, with its own verb only where it went another way than the metric named before it."""
    verb = _verb(of)
    if verb == "stayed":
        return "stayed level"
    said = "" if verb == _verb(before) else f"{verb} "
    if of["relative"] is None:
        return f"{said}from {number(of['base'])} to {number(of['other'])}"
    return f"{said}by {percent(abs(of['relative'])).lstrip('+')}"


def _verb(of: dict[str, Any]) -> str:
    return "rose" if of["difference"] > 0 else "fell" if of["difference"] < 0 else "stayed"


def _not_adapted(report: dict[str, Any]) -> str:
    kept = "the base model is kept"
    shown = report["compared"]
    if shown == BASE:
        return f"Not adapted: nothing but the base model was evaluated, so {kept}."
    of = report["comparisons"][shown]["mrr@5"]
    base_value = number(of["base"])
    return (
        f"Not adapted: on validation no tuned model was better than the base model beyond chance"
        f"{' at an allowed loss elsewhere' if report['max_loss'] is not None else ''}, so {kept} "
        f"(MRR@5 {base_value} on test; {label(shown)}, the best tuned one, {number(of['other'])}, "
        f"{percent(of['relative'])}, {p_value(of['p_value'])})."
    )
