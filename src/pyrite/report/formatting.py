"""Numbers, durations and sentences as the report prints them, on the page and in the terminal.

All text is ASCII, so that every terminal can print it. The page replaces the hyphen before a number by a minus sign.
"""

import math
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import BASE, label
from pyrite.report.references import metrics_better_in_bm25

NONE = "-"
#: What the interval of a single run leaves out.
ONE_RUN = "One split and one training seed: another split or seed can differ by more than the interval."


def minus(text: str) -> str:
    """The text with typographic minus signs before numbers, and no line break inside ``p = .034``."""
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
    """A share as a percentage, with one decimal below 10%: ``+32%``, ``+8.4%``, ``-0.5%``."""
    if share is None or not math.isfinite(share):
        return NONE
    digits = 0 if abs(share) >= 0.0995 else 1
    text = f"{100 * share:+.{digits}f}" if sign else f"{100 * share:.{digits}f}"
    return f"{'0' if float(text) == 0 else text}%"


def direction(comparison: dict[str, Any]) -> str:
    """``up`` or ``down`` if the confidence interval of the difference excludes 0, else the empty string."""
    low, high = comparison["difference_interval"]["low"], comparison["difference_interval"]["high"]
    if low is None or high is None:
        return ""
    return "up" if low > 0 else "down" if high < 0 else ""


def interval(bounds: dict[str, float | None], number_format: Callable[[float | None], str] = percent) -> str:
    """``+27% to +38%``."""
    if bounds["low"] is None or bounds["high"] is None:
        return NONE
    return f"{number_format(bounds['low'])} to {number_format(bounds['high'])}"


def p_value(value: float | None) -> str:
    """``p < .001``, ``p = .034``."""
    if value is None:
        return NONE
    return "p < .001" if value < 0.001 else f"p = {number(min(value, 1.0))}"


def duration(seconds: float | None) -> str:
    """``48 s``, ``6 min 32 s``, ``3 h 05 min``."""
    if seconds is None:
        return NONE
    rounded = round(seconds)
    if rounded < 1:
        return "under 1 s"
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600:,} h {rounded % 3600 // 60:02d} min"


def size(count: float | None) -> str:
    """Bytes in decimal units: ``90.9 MB``."""
    if count is None:
        return NONE
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if count >= 1000:
            count, unit = count / 1000, larger
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def small_bytes(row: dict[str, Any]) -> str:
    """The bytes of a passage in a row of ``smaller.build``: ``48``, ``48 + 1,536 on disk``."""
    on_disk = f" + {row['rescored_bytes']:,} on disk" if row["rescored_bytes"] else ""
    return f"{row['bytes']:,}{on_disk}"


def rate(value: float | None) -> str:
    """A rate, with one decimal below 20: ``3,120``, ``85``, ``6.3``."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def dollars(value: float) -> str:
    """``6.10``. A price that would be rounded to 0.00 is ``under 0.01``."""
    return "under 0.01" if 0 < value < 0.005 else f"{value:,.2f}"


_DECODING_MODES = {
    "label_ids": "one unconstrained token, with the probabilities of the labels",
    "choice": "one token constrained to the labels, with their probabilities if the server returns them",
    "logprobs": "one unconstrained token, with the probabilities of the most likely tokens",
    "text": "a short reply that is parsed for a label, without probabilities",
}


def decoding_modes(rows: list[dict[str, Any]]) -> str:
    """The decoding modes of the judge: by iteration if they differ, else once."""
    descriptions = [
        (row["iteration"], " and ".join(_DECODING_MODES.get(mode, mode) for mode in row["decoding_modes"]))
        for row in rows
        if row["decoding_modes"]
    ]
    if not descriptions:
        return "not used, because all judgments were cached"
    if len({text for _, text in descriptions}) == 1:
        return descriptions[0][1]
    return "; ".join(f"iteration {iteration}: {text}" for iteration, text in descriptions)


def decoding(judging: dict[str, Any]) -> str:
    """The decoding modes of the LLMs among the judges, as sentences; empty without an LLM."""
    places = {"Decoding": "decoding_modes"}
    if judging["kind"] == "cascade":
        places = {
            "Decoding of the first judge": "first_decoding_modes",
            "Decoding of the second judge": "decoding_modes",
        }
    texts = []
    for judge, (name, key) in zip(judging["judges"], places.items(), strict=True):
        if judge["kind"] == "llm" and judging["iterations"]:
            rows = [{**row, "decoding_modes": row.get(key, [])} for row in judging["iterations"]]
            texts.append(f"{name}: {decoding_modes(rows)}.")
    return " ".join(texts)


def labels_caveat(judging: dict[str, Any]) -> str:
    """What the result does not show because the answer key was a judge; empty if it was none."""
    judges = judging["judges"]
    labels = [place for place, judge in enumerate(judges) if judge["kind"] == "labels"]
    if not labels:
        return ""
    errors = " and ".join(filter(None, (judges[place]["errors"] for place in labels)))
    answers = f"The data set's own answers{f' with simulated errors ({errors})' if errors else ''}"
    if len(judges) == 1:
        return f"{answers} were the judge, so this says nothing about an LLM as judge."
    if len(labels) == 2:
        return f"{answers} were both judges of the cascade, so this says nothing about LLMs as judges."
    place = ("first", "second")[labels[0]]
    return f"{answers} were the {place} judge of the cascade, so this says nothing about an LLM in its place."


def grade_share_change(change: dict[str, Any]) -> str:
    """A sentence about ``largest_change`` of ``judging.timeline``."""
    before, after = (percent(change[key], sign=False) for key in ("before", "after"))
    return (
        f"Largest change between consecutive iterations, among newly judged pairs: the share of grade "
        f"{change['grade']} went from {before} in iteration {change['iteration'] - 1} to {after} in iteration "
        f"{change['iteration']}."
    )


def known_answers(found: dict[str, Any]) -> str:
    """A sentence about ``judging.known_answers``."""
    relevant, expected = found["relevant"], found["expected"]
    return (
        f"Known answers: the judge gave grade 3 or 4 to {percent(relevant['mean'], sign=False)} "
        f"({interval(relevant, lambda share: percent(share, sign=False))}) of the "
        f"{plural(found['judged'], 'pair')} that it graded; mean expected grade {number(expected['mean'], 2)} "
        f"({interval(expected, lambda grade: number(grade, 2))})."
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


#: The metrics that are shown for evaluate.judge.
JUDGED_METRICS = ("mrr@5", "dcg@5", "ndcg@10")


def chooses_by_judge(report: dict[str, Any]) -> bool:
    """Whether the grades of evaluate.judge choose the model and are the headline, not the answer key."""
    return bool((report.get("judged") or {}).get("chooses"))


def headline(report: dict[str, Any]) -> dict[str, Any]:
    """The comparisons with the base model on test that are the result of the run, by model and metric."""
    comparisons: dict[str, Any] = (report["judged"] if chooses_by_judge(report) else report)["comparisons"]
    return comparisons


def key_name(report: dict[str, Any]) -> str:
    """What a run without evaluate.judge is measured by."""
    return "known answers" if chooses_by_judge(report) else "the answer key"


def verdict(report: dict[str, Any]) -> str:
    """The outcome of the run in one to five sentences."""
    text = _outcome(report)
    if chooses_by_judge(report):
        text += f" Relevance was judged by {report['judged']['model']}; there is no answer key."
    if better := metrics_better_in_bm25(report["references"]):
        values = " and ".join(f"{METRICS[metric].label} {number(value)}" for metric, value in better.items())
        text += f" {'By known answers, ' if chooses_by_judge(report) else ''}BM25 is better: {values}."
    return text


def _outcome(report: dict[str, Any]) -> str:
    chosen, gate = report["chosen"], report["gate"]
    if chosen == BASE:
        return _not_adapted(report)
    mrr, dcg = (headline(report)[chosen][metric] for metric in ("mrr@5", "dcg@5"))
    changes = f"{_change_with_interval('mrr@5', mrr)} and DCG@5 {_short_change(dcg, mrr)}"
    required = _required_gains(gate) + (" at the lower bound" if gate["bound"] == "lower" else "")
    if gate["passed"]:
        return f"Adapted: {changes}. The gate of {required} is met."
    missed = "; ".join(_missed(check, gate["bound"]) for check in gate["checks"] if not check["met"])
    if mrr["difference"] > 0:
        return f"Adapted, but the gate of {required} is not met: {changes}. Missed: {missed}."
    return (
        f"Not confirmed: {label(chosen)} was better on validation, but on test {changes}. "
        f"The gate of {required} is not met."
    )


def _required_gains(gate: dict[str, Any]) -> str:
    gains = gate["required"]
    if len(set(gains.values())) == 1:
        return percent(gains["mrr@5"])
    return " and ".join(f"{percent(gain)} {METRICS[metric].label}" for metric, gain in gains.items())


def _missed(check: dict[str, Any], bound: str) -> str:
    if check["kind"] == "p":
        return f"p-value {number(check['observed'])}, at most {number(check['required'])} required"
    observed, required = percent(check["observed"]), percent(check["required"])
    label_ = METRICS[check["metric"]].label + (" at the lower bound" if bound == "lower" else "")
    return f"{label_} {observed}, at least {required} required"


def _change_with_interval(metric: str, comparison: dict[str, Any]) -> str:
    name, verb = METRICS[metric].label, _verb(comparison)
    before, after = number(comparison["base"]), number(comparison["other"])
    if verb == "stayed":
        return f"{name} stayed at {before}"
    details = [percent(comparison["relative"]), p_value(comparison["p_value"])]
    if comparison["relative_interval"]["low"] is not None:
        details.insert(1, f"95% confidence interval {interval(comparison['relative_interval'])}")
    return f"{name} {verb} from {before} to {after} ({', '.join(details)})"


def _short_change(comparison: dict[str, Any], previous: dict[str, Any]) -> str:
    """``by 31%``, with a verb only if the previously named metric changed in another direction."""
    verb = _verb(comparison)
    if verb == "stayed":
        return "did not change"
    prefix = "" if verb == _verb(previous) else f"{verb} "
    if comparison["relative"] is None:
        return f"{prefix}from {number(comparison['base'])} to {number(comparison['other'])}"
    return f"{prefix}by {percent(abs(comparison['relative']), sign=False)}"


def _verb(comparison: dict[str, Any]) -> str:
    difference = comparison["difference"]
    return "rose" if difference > 0 else "fell" if difference < 0 else "stayed"


def _not_adapted(report: dict[str, Any]) -> str:
    compared = report["compared"]
    if compared == BASE:
        return "Not adapted: only the base model was evaluated, so the base model is used."
    mrr = headline(report)[compared]["mrr@5"]
    limit = " within the allowed loss on the retention set" if report["max_loss"] is not None else ""
    return (
        f"Not adapted: on validation no tuned model was better than the base model beyond chance{limit}, so the base "
        f"model is used. On test its MRR@5 is {number(mrr['base'])}. The best tuned model, {label(compared)}, reaches "
        f"{number(mrr['other'])} ({percent(mrr['relative'])}, {p_value(mrr['p_value'])})."
    )
