"""Tables for a terminal of 80 columns: results, comparison of two runs, probe, calibration, grades by people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import BASE, label
from pyrite.report import formatting

if TYPE_CHECKING:
    from pyrite.report.compare import ReportComparison

#: More tuned models than this do not fit into 80 columns.
_MAX_TUNED = 3
_SELECTION = "To choose between runs, use validation: choosing by test makes the winner's test score too high."


def results(report: dict[str, Any]) -> Table:
    """Every metric on test for the base model, the iterations and the chosen model, with 95% confidence intervals."""
    shown, hidden = _shown_models(report)
    caption = f"Change from the base model, with its 95% confidence interval. {formatting.ONE_RUN}"
    if hidden:
        caption += f" {formatting.plural(hidden, 'more model')} in the report."
    table = _captioned_table(f"Means over {_test_queries(report['test']['queries'])}", caption)
    table.add_column("", no_wrap=True)
    for model in shown:
        name = label(model).replace(" at ", "\nat ") + (", chosen" if model == report["chosen"] else "")
        table.add_column(name, justify="right", no_wrap=True)
    for metric in METRICS.values():
        table.add_row(metric.label, *(_cell(report, model, metric.name) for model in shown))
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


def _shown_models(report: dict[str, Any]) -> tuple[list[str], int]:
    """The models that fit into the table, and how many do not. The chosen model always fits."""
    tuned: list[str] = [model for model in report["models"] if model != BASE]
    if len(tuned) <= _MAX_TUNED:
        return [BASE, *tuned], 0
    unblended = [model for model in tuned if "@" not in model]
    by_priority = [unblended[0], unblended[-1], report["chosen"], report["compared"], *reversed(unblended)]
    shown = [model for model in dict.fromkeys(by_priority) if model != BASE][:_MAX_TUNED]
    return [BASE, *(model for model in tuned if model in shown)], len(tuned) - len(shown)


def _cell(report: dict[str, Any], model: str, metric: str) -> str:
    if model == BASE:
        return formatting.number(report["means"]["test"][BASE][metric])
    row = report["comparisons"][model][metric]
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


def calibration(content: Mapping[str, Any]) -> Iterator[Group | Text]:
    """Agreement with the known grades: statistics, confusion matrix, reliability and recalibration."""
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
    yield Text(_recalibration(content["recalibration"]))


def _calibration_notes(content: Mapping[str, Any]) -> Iterator[str]:
    plural = formatting.plural
    pairs, queries = plural(content["n"], "graded pair"), plural(content["queries"], "query", "queries")
    yield f"{pairs} of {queries}; grades {content['scale']['read_as']}"
    if content["rows_unknown"]:
        yield f"{plural(content['rows_unknown'], 'row')} skipped: query or document is not in this run"
    if content["rows_of_several_passages"]:
        count = plural(content["rows_of_several_passages"], "document")
        yield f"{count} with several passages: the best passage counts (MaxP)"
    if content["known"]:
        yield f"{plural(content['known'], 'cached judgment')} reused"
    if content["missing"]:
        yield f"{plural(content['missing'], 'pair')} missing: the judge returned no grade"


def _recalibration(found: Mapping[str, Any] | None) -> str:
    """The effect of fitted cut points on the expected grade, in two or three sentences."""
    if found is None:
        return "Recalibration: not tested, because cross-validation needs pairs of at least two queries."
    points = ", ".join(f"{point:.2f}" for point in found["cut_points"])
    before, after = formatting.number(found["before"]), formatting.number(found["after"])
    low = found["gain"]["low"]
    conclusion = "Recalibration would help." if low is not None and low > 0 else "A benefit is not certain."
    return (
        f"Recalibration: the cut points on the expected grade with the highest kappa are {points} (default: 1.5, 2.5, "
        f"3.5). Cross-validated by query, kappa changes from {before} to {after} (95% confidence interval of the gain "
        f"{formatting.interval(found['gain'], formatting.signed)}). {conclusion}"
    )


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
    """The gain in DCG@5 by the answer key and corrected by people's grades, and the grades by stratum."""
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
        f"95% confidence intervals, clustered by topic. Grades 1 to 4 count as gains from 0 to {top}. Corrected by "
        f"prediction-powered inference; weight of the answer key in the difference: {weight}. "
        "MRR@5 cannot be corrected: it is not a sum over pairs."
    )
    table = _captioned_table(f"DCG@5 of {label(content['model'])} compared with the base model", caption)
    table.add_column("", no_wrap=True)
    for name in ("base", "difference", "relative"):
        table.add_column(name, justify="right", no_wrap=True)
    corrected = f"corrected by {pairs['graded']:,} grades"
    for name, row in (("answer key", content["judged"]), (corrected, content["corrected"])):
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
