"""What `pyrite probe` and `pyrite calibrate` print, for a terminal of 80 columns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pyrite.report import formatting


def probe(content: Mapping[str, Any]) -> Iterator[Group | Text]:
    """The numbers of a probe, its checks and the verdict."""
    hard, grades = content["hard"], content["grades"]["all"]
    table = _table(("", "left"), ("", "left"))
    table.add_row("pairs judged", f"{content['answered']['judged']:,} of {content['answered']['requested']:,}")
    table.add_row("grades", ", ".join(f"{grade}: {count:,}" for grade, count in reversed(grades.items())))
    for name, rule in (("rank_rule", "rank rule"), ("own_rule", f"mine.rule {content['rule']}")):
        found = hard[name]
        table.add_row(
            f"hard, {rule}",
            f"{formatting.plural(found['positives'], 'positive')}, {formatting.plural(found['negatives'], 'negative')}",
        )
    if "decoding_mode" in content["judge"]:
        way, cut = content["judge"]["decoding_mode"], formatting.plural(content["judge"]["truncated"], "passage")
        table.add_row("asked by", f"{way}; {cut} cut to the model's window")
    table.add_row("pairs a second", formatting.rate(content["pairs_per_second"]))
    if content["prompt_tokens_per_pair"]:
        prompt, cached = content["prompt_tokens_per_pair"], content["cached_tokens_per_pair"]
        table.add_row(
            "prompt tokens a pair", f"{prompt:,.0f}, {formatting.percent(cached / prompt, sign=False)} from cache"
        )
    yield _titled("probe", table)
    checks = _table(("", "left"), ("", "left"))
    for check in content["checks"]:
        mark = "[green]ok[/]" if check["passed"] else "[red]no[/]"
        text = check["found"] if check["passed"] else f"{check['found']}. {check['advice']}"
        checks.add_row(mark, escape(text))
    yield _titled("checks", checks)
    yield Text(f"\n{content['verdict']}")


def calibration(content: Mapping[str, Any]) -> Iterator[Group | Text]:
    """Agreement, confusion table, reliability, and what cut points would do."""
    for line in _notes(content):
        yield Text(line)
    table = _table(("", "left"), ("", "right"), ("95% interval", "left"))
    table.add_row("quadratic kappa", formatting.number(content["kappa"]), _interval(content["kappa_interval"]))
    table.add_row("kappa, relevant (3, 4) or not", formatting.number(content["kappa_relevant"]), "")
    table.add_row("Spearman, expected grade", formatting.number(content["spearman"]), "")
    table.add_row("AUC, relevant or not", formatting.number(content["auc"]), _interval(content["auc_interval"]))
    table.add_row("bias, in grades", formatting.signed(content["bias"]), "")
    table.add_row("calibration error, in grades", formatting.number(content["calibration_error"]), "")
    yield _titled("agreement", table)
    yield _titled("true grade (rows) and the judge's grade (columns): pairs", _confusion(content["confusion"]))
    yield _titled("expected grade beside true grade", _reliability(content["reliability"]))
    yield Text(_recalibration(content["recalibration"]))


def _notes(content: Mapping[str, Any]) -> Iterator[str]:
    n, queries = (
        formatting.plural(content["n"], "graded pair"),
        formatting.plural(content["queries"], "query", "queries"),
    )
    yield f"{n} of {queries}; grades {content['scale']['read_as']}"
    if content["rows_unknown"]:
        yield f"{formatting.plural(content['rows_unknown'], 'row')} left out: query or document is not in this run"
    if content["rows_of_several_passages"]:
        count = formatting.plural(content["rows_of_several_passages"], "document")
        yield f"{count} of several passages: each counts as its best passage does"
    if content["known"]:
        yield f"{formatting.plural(content['known'], 'judgment')} known before"
    if content["missing"]:
        yield f"{formatting.plural(content['missing'], 'pair')} left without a grade by the judge"


def _recalibration(recalibration: Mapping[str, Any] | None) -> str:
    """What cut points on the expected grade would do, in a sentence or two."""
    if recalibration is None:
        return "Cut points: with pairs of a single query nothing can be held out to test them on."
    cuts = ", ".join(f"{cut:.2f}" for cut in recalibration["cut_points"])
    before, after = formatting.number(recalibration["before"]), formatting.number(recalibration["after"])
    text = (
        f"Cut points on the expected grade that agree best: {cuts} (usual: 1.5, 2.5, 3.5). On queries that they were "
        f"not chosen on, kappa goes from {before} to {after} ({_interval(recalibration['gain'], formatting.signed)})."
    )
    low = recalibration["gain"]["low"]
    mends = low is not None and low > 0
    return f"{text} {'They would mend a bias.' if mends else 'That they mend anything is not certain.'}"


def _interval(of: Mapping[str, float | None], said: Callable[[float | None], str] = formatting.number) -> str:
    return formatting.NONE if of["low"] is None or of["high"] is None else f"{said(of['low'])} to {said(of['high'])}"


def _confusion(counts: Sequence[Sequence[int]]) -> Table:
    table = _table(*((name, "right") for name in ("", "1", "2", "3", "4")))
    for grade, row in enumerate(counts, 1):
        cells = [f"{count:,}" for count in row]
        cells[grade - 1] = f"[bold]{cells[grade - 1]}[/]"
        table.add_row(str(grade), *cells)
    return table


def _reliability(bins: Sequence[Mapping[str, Any]]) -> Table:
    columns = [(name, "right") for name in ("expected", "pairs", "mean expected", "mean true")]
    table = _table(*columns)
    for one in bins:
        means = f"{one['expected']:.2f}", f"{one['truth']:.2f}"
        table.add_row(f"{one['low']:.1f} to {one['high']:.1f}", f"{one['pairs']:,}", *means)
    return table


def _table(*columns: tuple[str, Any]) -> Table:
    headed = any(name for name, _ in columns)
    table = Table(box=box.SIMPLE_HEAD if headed else None, pad_edge=False, show_header=headed)
    for name, justify in columns:
        table.add_column(name, justify=justify)
    return table


def _titled(title: str, table: Table) -> Group:
    """Not rich's own title, which is broken at the table's width."""
    return Group(Text(f"\n{title}", style="bold"), table)
