"""Tables for a terminal of 80 columns: results, comparison of two runs, probe, calibration, grades by people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pyrite.evaluation.agreement import MIN_PAIRS, MIN_QUERIES, enough
from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import BASE, SELECTION_METRICS, label
from pyrite.report import formatting, rehearsal

if TYPE_CHECKING:
    from pyrite.report.compare import ReportComparison

#: More tuned models than this do not fit into 80 columns.
_MAX_TUNED = 3
_SELECTION = "To choose between runs, use validation: choosing by test makes the winner's test score too high."


def outcome(report: dict[str, Any], calibration: Mapping[str, Any] | None) -> Iterator[Table | Text]:
    """The result of a run: metrics, references, evaluate.judge, smaller embeddings, known answers, rehearsal, verdict.

    Args:
        calibration: the result of `pyrite calibrate` for the run's judge, to quote the nearest noise rehearsal.
    """
    yield results(report)
    yield references(report)
    if table := judged(report):
        yield table
    if table := smaller(report):
        yield table
    if known := report.get("known_answers"):
        yield Text(formatting.known_answers(known))
    if calibration and (rehearsed := rehearsal.sentence(calibration["kappa"], calibration["bias"])):
        yield Text(rehearsed)
    yield Text(report["verdict"])


def results(report: dict[str, Any]) -> Table:
    """Every metric on test for the base model, the iterations and the chosen model, with 95% confidence intervals."""
    shown, hidden = _shown_models(report)
    caption = f"Change from the base model, with its 95% confidence interval. {formatting.ONE_RUN}"
    if hidden:
        caption += f" {formatting.plural(hidden, 'more model')} in the report."
    by = f", by {formatting.key_name(report)}" if report.get("judged") else ""
    table = _captioned_table(f"Means over {_test_queries(report['test']['queries'])}{by}", caption)
    table.add_column("", no_wrap=True)
    for model in shown:
        table.add_column(_model_heading(report, model), justify="right", no_wrap=True)
    means, comparisons = report["means"]["test"], report["comparisons"]
    for metric in METRICS.values():
        table.add_row(metric.label, *(_cell(means, comparisons, model, metric.name) for model in shown))
    return table


def _model_heading(report: dict[str, Any], model: str) -> str:
    return label(model).replace(" at ", "\nat ") + (", chosen" if model == report["chosen"] else "")


def judged(report: dict[str, Any]) -> Table | None:
    """The results on test by evaluate.judge; None if the run has no such judge."""
    found = report.get("judged")
    if not found:
        return None
    shown, _ = _shown_models(report)
    pairs = f"{found['pairs']:,} pairs of all candidates, {found['missing']:,} without a grade."
    choice = "" if found["chooses"] else " These grades did not choose the model."
    caption = f"{pairs} Change from the base model, with its 95% confidence interval.{choice}"
    title = f"Judged by {found['model']}, {_test_queries(found['queries'])}"
    table = _captioned_table(title, " ".join([caption, *found["notes"]]))
    table.add_column("", no_wrap=True)
    for model in shown:
        table.add_column(_model_heading(report, model), justify="right", no_wrap=True)
    for metric in formatting.JUDGED_METRICS:
        cells = (_cell(found["means"], found["comparisons"], model, metric) for model in shown)
        table.add_row(METRICS[metric].label, *cells)
    return table


def references(report: dict[str, Any]) -> Table:
    """The reference rows on test, and how the chosen model differs from each."""
    caption = "Change from the reference to the chosen model, with its 95% confidence interval."
    table = _captioned_table(f"References, {_test_queries(report['test']['queries'])}", caption)
    table.add_column("", no_wrap=True)
    for metric in ("mrr@5", "dcg@5"):
        table.add_column(METRICS[metric].label, justify="right", no_wrap=True)
        table.add_column("chosen model", justify="right", no_wrap=True)
    for row in report["references"]:
        cells = []
        for metric in ("mrr@5", "dcg@5"):
            found = row["comparisons"][metric]
            interval = formatting.interval(found["relative_interval"])
            cells += [formatting.number(found["base"]), f"{formatting.percent(found['relative'])}\n[dim]{interval}[/]"]
        table.add_row(row["label"].replace(", ", ",\n"), *cells)
    return table


def smaller(report: dict[str, Any]) -> Table | None:
    """Smaller embeddings of the chosen model, and how they differ from its float32 embeddings; None if not scored."""
    found = report.get("smaller")
    if not found:
        return None
    chosen = report["chosen"]
    caption = "Change from float32 embeddings, with its 95% confidence interval. Bytes of a passage in the index."
    title = f"Smaller embeddings of {label(chosen)}, {_test_queries(found['queries'])}"
    table = _captioned_table(title, caption)
    table.add_column("", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    for metric in SELECTION_METRICS:
        table.add_column(METRICS[metric].label, justify="right", no_wrap=True)
    for number, row in enumerate(found["rows"]):
        rows = row["comparisons"][chosen]
        cells = (_compared(rows[metric]) if number else formatting.number(rows[metric]["base"]) for metric in rows)
        table.add_row(row["label"].replace(", ", ",\n"), formatting.small_bytes(row).replace(" + ", "\n+ "), *cells)
    return table


def _shown_models(report: dict[str, Any]) -> tuple[list[str], int]:
    """The models that fit into the table, and how many do not. The chosen model always fits."""
    tuned: list[str] = [model for model in report["models"] if model != BASE]
    if len(tuned) <= _MAX_TUNED:
        return [BASE, *tuned], 0
    unblended = [model for model in tuned if "@" not in model]
    by_priority = [unblended[0], unblended[-1], report["chosen"], report["compared"], *reversed(unblended)]
    shown = [model for model in dict.fromkeys(by_priority) if model != BASE][:_MAX_TUNED]
    return [BASE, *(model for model in tuned if model in shown)], len(tuned) - len(shown)


def _cell(means: dict[str, Any], comparisons: dict[str, Any], model: str, metric: str) -> str:
    if model == BASE:
        return formatting.number(means[BASE][metric])
    return _compared(comparisons[model][metric])


def _compared(row: dict[str, Any]) -> str:
    """The compared mean, the relative change and its interval."""
    change = formatting.percent(row["relative"])
    colour = {"up": "green", "down": "red"}.get(formatting.direction(row))
    change = f"[{colour}]{change}[/]" if colour else change
    return f"{formatting.number(row['other'])} {change}\n[dim]{formatting.interval(row['relative_interval'])}[/]"


def comparison(compared: "ReportComparison") -> Table:
    """The chosen models of two runs on the validation and test queries that both runs have."""
    table = _captioned_table(
        f"{compared.b} compared with {compared.a}, {_test_queries(compared.queries)}",
        "\n".join(["Difference with its 95% confidence interval, clustered by topic.", _SELECTION, *compared.notes]),
    )
    table.add_column("")
    for name, model in ((compared.a, compared.model_a), (compared.b, compared.model_b)):
        table.add_column(f"{escape(name)}\n[dim]{label(model)}[/]", justify="right", overflow="fold")
    table.add_column("difference", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    lines = [(f"{METRICS[metric].label}, validation", row) for metric, row in compared.val_rows.items()]
    lines += [(f"{METRICS[metric].label}, test", row) for metric, row in compared.rows.items()]
    for name, row in lines:
        low, high = row.difference_interval.low, row.difference_interval.high
        colour = "green" if low > 0 else "red" if high < 0 else "default"
        interval = f"{formatting.signed(low)} to {formatting.signed(high)}"
        table.add_row(
            name,
            formatting.number(row.base),
            formatting.number(row.other),
            f"[{colour}]{formatting.signed(row.difference)}[/]\n[dim]{interval}[/]",
            formatting.p_value(row.p_value).removeprefix("p ").removeprefix("= "),
        )
    return table


def probe(content: Mapping[str, Any]) -> Iterator[Group | Text]:
    """The numbers of a probe, its checks and the verdict."""
    hard, grades = content["hard"], content["grades"]["all"]
    table = _table(("", "left"), ("", "left"))
    table.add_row("pairs judged", f"{content['answered']['judged']:,} of {content['answered']['requested']:,}")
    table.add_row("grades", ", ".join(f"{grade}: {count:,}" for grade, count in reversed(grades.items())))
    for name, rule in (("rank_rule", "rank rule"), ("own_rule", f"mine.rule {content['rule']}")):
        positives = formatting.plural(hard[name]["positives"], "positive")
        negatives = formatting.plural(hard[name]["negatives"], "negative")
        table.add_row(f"hard, {rule}", f"{positives}, {negatives}")
    if "decoding_mode" in content["judge"]:
        table.add_row("decoding mode", content["judge"]["decoding_mode"])
        table.add_row("truncated passages", f"{content['judge']['truncated']:,}")
    table.add_row("pairs per second", formatting.rate(content["pairs_per_second"]))
    if content["prompt_tokens_per_pair"]:
        prompt, cached = content["prompt_tokens_per_pair"], content["cached_tokens_per_pair"]
        share = formatting.percent(cached / prompt, sign=False)
        table.add_row("prompt tokens per pair", f"{prompt:,.0f}, {share} in the prefix cache")
    yield _titled("probe", table)
    checks = _table(("", "left"), ("", "left"))
    for check in content["checks"]:
        mark = "[green]ok[/]" if check["passed"] else "[red]no[/]"
        text = check["found"] if check["passed"] else f"{check['found']}. {check['advice']}"
        checks.add_row(mark, escape(text))
    yield _titled("checks", checks)
    yield Text(f"\n{content['verdict']}")


def calibration(content: Mapping[str, Any], setting: str) -> Iterator[Group | Text]:
    """Agreement with the known grades: statistics, confusion matrix, reliability and recalibration.

    Args:
        setting: the setting that names a calibration of the judge.
    """
    for line in _calibration_notes(content):
        yield Text(line)
    table = _table(("", "left"), ("", "right"), ("95% confidence interval", "left"))
    kappa, auc = (formatting.interval(content[name], formatting.number) for name in ("kappa_interval", "auc_interval"))
    table.add_row("quadratic weighted kappa", formatting.number(content["kappa"]), kappa)
    table.add_row("kappa, relevant (3, 4) or not", formatting.number(content["kappa_relevant"]), "")
    table.add_row("Spearman, expected grade", formatting.number(content["spearman"]), "")
    table.add_row("AUC, relevant or not", formatting.number(content["auc"]), auc)
    table.add_row("bias, in grades", formatting.signed(content["bias"]), "")
    table.add_row("calibration error, in grades", formatting.number(content["calibration_error"]), "")
    yield _titled("agreement", table)
    yield _titled("confusion matrix: pairs by true grade (rows) and judge's grade (columns)", _confusion(content))
    yield _titled("reliability: expected grade against true grade", _reliability(content["reliability"]))
    yield Text(_recalibration(content))
    if rehearsed := rehearsal.sentence(content["kappa"], content["bias"]):
        yield Text(rehearsed)
    if "comparison" in content:
        yield from _prompt_comparison(content["comparison"])
    if "robustness" in content:
        yield from _robustness(content["robustness"])
    gain = content["recalibration"]["gain"] if content["recalibration"] else None
    if gain and not _is_worse(gain) and content["judge"]["model"] and not content["judge"].get("calibration"):
        yield Text(f"To use it, set {setting} to this file:")


def _calibration_notes(content: Mapping[str, Any]) -> Iterator[str]:
    plural = formatting.plural
    pairs, queries = plural(content["n"], "graded pair"), plural(content["queries"], "query", "queries")
    yield f"{pairs} of {queries}; grades {content['scale']['read_as']}"
    if not enough(content["n"], content["queries"]):
        yield f"Warning: too few pairs to draw conclusions. Grade at least {MIN_PAIRS} pairs of {MIN_QUERIES} queries."
    if content["rows_unknown"]:
        yield f"{plural(content['rows_unknown'], 'row')} skipped: query or document is not in this run"
    if content["rows_of_several_passages"]:
        count = plural(content["rows_of_several_passages"], "document")
        yield f"{count} with several passages: the best passage counts (MaxP)"
    if content["known"]:
        yield f"{plural(content['known'], 'cached judgment')} reused"
    if content["missing"]:
        yield f"{plural(content['missing'], 'pair')} missing: the judge did not return {content['judge']['reply']}"
    low, high = content["raw_range"]
    calibrated = content["judge"].get("calibration")
    if content["judge"]["kind"] == "reranker" and not calibrated and (low < 0 or high > 1):
        yield (
            f"scores are from {formatting.number(low)} to {formatting.number(high)}: this judge needs the calibration. "
            "Without it, a score below 0 counts as 0 here, and one above 1 as 1"
        )


def _recalibration(content: Mapping[str, Any]) -> str:
    """The effect of a fitted calibration, in two or three sentences."""
    found: Mapping[str, Any] | None = content["recalibration"]
    if found is None and enough(content["n"], content["queries"]):
        return "Recalibration: all human grades are equal, so there is no calibration to write. Grade other pairs, too."
    if found is None:
        return f"Recalibration: not tested. It needs at least {MIN_PAIRS} pairs of {MIN_QUERIES} queries."
    points = ", ".join(f"{point:.2f}" for point in found["cut_points"])
    before, after = formatting.number(found["before"]), formatting.number(found["after"])
    low = found["gain"]["low"]
    if low is None:
        conclusion = "These are too few pairs to tell whether it helps."
    elif _is_worse(found["gain"]):
        conclusion = "Recalibration makes the grades worse: do not use it."
    else:
        conclusion = "Recalibration would help." if low > 0 else "A benefit is not certain."
    return (
        f"Recalibration: an isotonic map to the expected grade by people, with cut points {points}. "
        f"Cross-validated by query, kappa changes from {before} to {after} (95% confidence interval of the gain "
        f"{formatting.interval(found['gain'], formatting.signed)}). {conclusion}"
    )


def _is_worse(gain: Mapping[str, float | None]) -> bool:
    """Whether the interval of a calibration's gain is below 0."""
    return gain["high"] is not None and gain["high"] < 0


def _prompt_comparison(content: Mapping[str, Any]) -> Iterator[Group | Text]:
    """Agreement and cost of two prompts, and which one is better."""
    names = ("", "requests", "tokens", "computed", "kappa", "AUC", "Spearman")
    table = _table(*((name, "right" if name else "left") for name in names))
    for row in content["prompts"]:
        tokens = (f"{row[name]:,.0f}" for name in ("prompt_tokens_per_pair", "computed_tokens_per_pair"))
        numbers = (formatting.number(row[name]) for name in ("kappa", "auc", "spearman"))
        table.add_row(escape(row["prompt"]), str(row["requests_per_pair"]), *tokens, *numbers)
    pairs = formatting.plural(content["n"], "graded pair")
    yield _titled(f"prompts: {pairs}; requests and prompt tokens per pair", table)
    difference, interval = content["auc_difference"], content["auc_difference_interval"]
    if difference is None:
        yield Text("The prompts cannot be compared: no pair, or every pair, is relevant (3 or 4) by its human grade.")
        return
    first, second = (row["prompt"] for row in content["prompts"])
    found = (
        f"The AUC of {second} minus that of {first} is {formatting.signed(difference)} (95% confidence interval "
        f"{formatting.interval(interval, formatting.signed)}, clustered by query)."
    )
    if content["better"]:
        yield Text(f"{content['better']} serves this model better. {found}")
    else:
        yield Text(f"{'No clear difference' if content['enough'] else 'These are too few pairs to tell'}. {found}")


def _robustness(content: Mapping[str, Any]) -> Iterator[Group | Text]:
    """Changes of the expected grade by alteration, and which ones mislead the judge."""
    table = _table(("", "left"), *((name, "right") for name in ("change, all", "irrelevant", "changed", "kappa")))
    for number, row in enumerate(content["rows"]):
        cells = [
            f"{formatting.signed(row[name], 2)}\n[dim]{formatting.interval(row[f'{name}_interval'], _two_digits)}[/]"
            for name in ("change", "change_irrelevant")
        ]
        name = f"[bold]{row['name']}[/]" if row["clear"] else row["name"]
        changed = formatting.percent(row["grades_changed"], sign=False)
        if number == 0:  # the row that the others are compared with
            cells, changed = ["", ""], ""
        table.add_row(name, *cells, changed, formatting.number(row["kappa"], 2))
    pairs, queries = content["pairs"], formatting.plural(content["queries"], "query", "queries")
    yield _titled(f"robustness: {formatting.plural(pairs, 'pair')} of {queries}", table)
    yield Text(
        "change: mean change of the expected grade, with its 95% confidence interval, clustered by query; irrelevant: "
        "of pairs that people grade 1 or 2; changed: share of pairs with another grade; kappa: with the human grades."
    )
    clear = ", ".join(row["name"] for row in content["rows"] if row["clear"])
    rule = "the interval does not contain 0, and the change is at least a quarter of a grade"
    few = ", ".join(row["name"] for row in content["rows"][1:] if row["clear"] is None)
    if clear:
        yield Text(f"Changes the grades clearly ({rule}): {clear}.")
    elif not few:
        yield Text(f"Nothing changes the grades clearly ({rule}).")
    if few:
        yield Text(f"Too few pairs to tell: {few}.")


def _two_digits(value: float | None) -> str:
    return formatting.signed(value, 2)


def _confusion(content: Mapping[str, Any]) -> Table:
    table = _table(*((name, "right") for name in ("", "1", "2", "3", "4")))
    for grade, row in enumerate(content["confusion"], 1):
        cells = [f"{count:,}" for count in row]
        cells[grade - 1] = f"[bold]{cells[grade - 1]}[/]"
        table.add_row(str(grade), *cells)
    return table


def _reliability(bins: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(*((name, "right") for name in ("expected grade", "pairs", "mean expected", "mean true")))
    for each in bins:
        means = f"{each['expected']:.2f}", f"{each['truth']:.2f}"
        table.add_row(f"{each['low']:.1f} to {each['high']:.1f}", f"{each['pairs']:,}", *means)
    return table


def people(content: Mapping[str, Any]) -> Iterator[Group | Table | Text]:
    """The gain in DCG@5 by the answer key and corrected by people's grades on two scales, and the grades by stratum."""
    pairs, top = content["pairs"], content["top_gain"]
    strata = _table(("", "left"), *((name, "right") for name in ("pairs", "graded", "mean gain, key", "people")))
    for row in content["strata"]:
        means = (formatting.number(row[name], 2) for name in ("judged", "people"))
        strata.add_row(row["name"], f"{row['pairs']:,}", f"{row['graded']:,}", *means)
    title = f"first five passages of {_test_queries(content['queries'])}, by the model that finds them"
    yield _titled(title, strata)
    if content["corrected"] is None:
        needed = f"{pairs['needed']}, and in each row at least two or all pairs"
        yield Text(f"\nToo few pairs are graded for a corrected gain: it needs {needed}.")
        return
    weight = formatting.number(content["corrected"]["judge_weight"], 2)
    caption = (
        f"95% confidence intervals, clustered by topic. Grades 1 to 4 count as gains from 0 to {top}; binary: grades 1 "
        f"and 2 as 0, 3 and 4 as {top}. Corrected by "
        f"prediction-powered inference; weight of the known answers in the difference: {weight}. "
        "MRR@5 cannot be corrected: it is not a sum over pairs."
    )
    table = _captioned_table(f"DCG@5 of {label(content['model'])} compared with the base model", caption)
    table.add_column("", no_wrap=True)
    for name in ("base", "difference", "relative"):
        table.add_column(name, justify="right", no_wrap=True)
    corrected = f"corrected by {pairs['graded']:,} grades"
    rows = ((corrected, content["corrected"]), ("the same, binary", content["corrected_binary"]))
    for name, row in (("known answers", content["judged"]), *rows):
        difference = formatting.interval(row["difference_interval"], formatting.signed)
        relative = formatting.interval(row["relative_interval"])
        table.add_row(
            name,
            formatting.number(row["base"]),
            f"{formatting.signed(row['difference'])}\n[dim]{difference}[/]",
            f"{formatting.percent(row['relative'])}\n[dim]{relative}[/]",
        )
    yield table


def _test_queries(count: int) -> str:
    return formatting.plural(count, "test query", "test queries")


def _captioned_table(title: str, caption: str) -> Table:
    return Table(
        title=escape(title),
        caption=escape(caption),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )


def _table(*columns: tuple[str, Any]) -> Table:
    has_header = any(name for name, _ in columns)
    table = Table(box=box.SIMPLE_HEAD if has_header else None, pad_edge=False, show_header=has_header)
    for name, justify in columns:
        table.add_column(name, justify=justify)
    return table


def _titled(title: str, table: Table) -> Group:
    """A title above the table. The title of a rich table would be wrapped at the width of the table."""
    return Group(Text(f"\n{title}", style="bold"), table)
