"""What the dashboards are built of: panels with a unit, a description and thresholds each, and the variables.

A dashboard is 24 columns wide; widths of a line of panels add up to 24, and six numbers side by side are still readable
at 1280 pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from grafana_foundation_sdk.builders import barchart, bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus as asked

Panel = Any  # the builders of panels have no base of their own

SOURCE = options.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, AMBER, RED = "green", "orange", "red"
_PLAIN, GREY = "text", "#808080"  # a number that is neither good nor bad; what only serves to compare
PER_SECOND = "count:/s"

#: The same colour wherever the same thing is shown.
GRADES = {"1": "blue", "2": "light-blue", "3": "light-green", "4": "green"}
OUTCOMES = {"judged": "blue", "cached": GREEN, "skipped": "light-green", "not_selected": GREY, "missing": RED}
EXAMPLES = {"hard": "purple", "easy": "light-blue", "accumulated": GREY}
HARD = {"positive": "purple", "negative": AMBER}
MODELS = {"base": GREY, "tuned": "blue"}

#: Values from which on a colour holds, the first of them (None) from the lowest on.
Steps = Sequence[tuple[float | None, str]]

#: The steps of a panel whose values are neither good nor bad.
NEUTRAL: Steps = ((None, _PLAIN),)


def worse(amber: float, red: float) -> Steps:
    """The higher the worse: green below ``amber``."""
    return ((None, GREEN), (amber, AMBER), (red, RED))


def better(amber: float, green: float) -> Steps:
    """The higher the better: red below ``amber``."""
    return ((None, RED), (amber, AMBER), (green, GREEN))


#: Labels that the variables of the dashboards choose.
SPACE = 'namespace=~"$namespace"'
RUN = f'{SPACE}, run=~"$run"'
AT = f'{RUN}, iteration=~"$iteration"'


class Query(NamedTuple):
    """What a panel asks, and how a series is called."""

    expr: str
    legend: str = ""


def rate(metric: str, labels: str, by: str = "") -> str:
    """Growth a second of a counter, summed."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantiles(histogram: str, labels: str) -> list[Query]:
    """p50, p95 and p99 of a histogram."""
    return [
        Query(f"histogram_quantile({q}, {rate(f'{histogram}_bucket', labels, 'le')})", f"p{q * 100:g}")
        for q in (0.5, 0.95, 0.99)
    ]


def time_left(labels: str) -> str:
    """Seconds until the iteration is judged that is being judged; none while nothing moves."""
    return (
        f"sum(run:pyrite_judge_work_left:sum{{{labels}}}) / (sum(run:pyrite_judge_work_done:rate10m{{{labels}}}) > 0)"
    )


def shares(series: str, part: str) -> str:
    """Of each iteration, the share of each value of the label ``part``."""
    return f"sum by (iteration, {part}) ({series}) / on (iteration) group_left () (sum by (iteration) ({series}) > 0)"


def budget_used(labels: str) -> str:
    """Dollars spent of those that a run may cost, of the run that is worst off."""
    cost, most = (
        f"max by (namespace, run) (pyrite_run_cost_{name}{{{labels}}})" for name in ("dollars", "budget_dollars")
    )
    return f"max({cost} / ({most} > 0))"


def number(
    title: str,
    about: str,
    unit: str,
    query: Query,
    steps: Steps,
    decimals: int | None = None,
) -> Panel:
    """One number as it is now, in the colour that ``steps`` say."""
    panel = _dressed(stat.Panel(), title, about, unit, [query], steps, instant=True).span(4).height(4)
    panel = panel.graph_mode(options.BigValueGraphMode.NONE).reduce_options(_last()).no_value("-")
    return panel if decimals is None else panel.decimals(decimals)


def words(title: str, about: str, query: Query, colors: dict[str, str]) -> Panel:
    """The name of the one series that there is, in a colour of its own."""
    panel = _dressed(stat.Panel(), title, about, "none", [query], NEUTRAL, instant=True).span(4).height(4)
    panel = panel.graph_mode(options.BigValueGraphMode.NONE).reduce_options(_last()).no_value("-")
    return _colored(panel.text_mode(options.BigValueTextMode.NAME), colors)


def over_time(
    title: str,
    about: str,
    unit: str,
    *queries: Query,
    steps: Steps,
    width: int = 12,
    stacked: bool = False,
    most: float | None = None,
    legend: Literal["table", "list", "names"] = "table",
    colors: Mapping[str, str] | None = None,
    dashed: str = "",
) -> Panel:
    """Lines over time, or what adds up, stacked; ``most``: end of the axis. ``steps`` are drawn as lines.

    A legend has room for three lines: a table of up to three series, a list of more, and of names alone where these are
    long. ``dashed`` are series, by a regular expression, that others are to be compared with.
    """
    panel = _dressed(timeseries.Panel(), title, about, unit, queries, steps).span(width).height(8).min(0)
    panel = panel.fill_opacity(30 if stacked else 5).line_width(1).show_points(options.VisibilityMode.AUTO)
    mode = options.LegendDisplayMode.TABLE if legend == "table" else options.LegendDisplayMode.LIST
    below = common.VizLegendOptions().show_legend(True).display_mode(mode).placement(options.LegendPlacement.BOTTOM)
    panel = panel.legend(below.calcs({"table": ["lastNotNull", "max"], "list": ["lastNotNull"], "names": []}[legend]))
    panel = panel.tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI))
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if steps != NEUTRAL:
        style = common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds_style(style)
    if dashed:
        line = model.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]})
        grey = model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": GREY})
        panel = panel.override_by_regexp(f"/{dashed}/", [line, grey])
    panel = _colored(panel, colors or {})
    return panel if most is None else panel.max(most)


def bars(title: str, about: str, unit: str, *queries: Query, most: float | None = None) -> Panel:
    """A bar for each series, as it is now; for ten at most. ``most``: where bars end."""
    panel = _dressed(bargauge.Panel(), title, about, unit, queries, NEUTRAL, instant=True).span(12).height(8).min(0)
    panel = panel.orientation(options.VizOrientation.HORIZONTAL).display_mode(options.BarGaugeDisplayMode.BASIC)
    panel = panel.reduce_options(_last()).no_value("-").color_scheme(_fixed("blue"))
    return panel if most is None else panel.max(most)


def columns(
    title: str,
    about: str,
    unit: str,
    query: Query,
    part: str,
    colors: Mapping[str, str],
    width: int = 12,
    most: float | None = None,
    decimals: int | None = None,
) -> Panel:
    """A column for each iteration, made up of a part for each value of the label ``part``, as it is now."""
    panel = _dressed(barchart.Panel(), title, about, unit, [query], NEUTRAL, instant=True).span(width).height(8).min(0)
    # A table of one row for each iteration: Grafana's bar chart takes the first column of words as names. Sorted
    # before, by number: 10 comes after 9.
    as_number = {"conversions": [{"targetField": "iteration", "destinationType": "number"}], "fields": {}}
    matrix = {"columnField": part, "rowField": "iteration", "valueField": "Value", "emptyValue": "null"}
    for id_, done in (
        ("sortBy", {"fields": {}, "sort": [{"field": part}]}),
        ("convertFieldType", as_number),
        ("sortBy", {"fields": {}, "sort": [{"field": "iteration"}]}),
        ("groupingToMatrix", matrix),
    ):
        panel = panel.with_transformation(model.DataTransformerConfig(id_val=id_, options=done))
    panel = panel.stacking(options.StackingMode.NORMAL).show_value(options.VisibilityMode.AUTO).fill_opacity(80)
    legend = common.VizLegendOptions().show_legend(True).display_mode(options.LegendDisplayMode.LIST)
    panel = panel.legend(legend.placement(options.LegendPlacement.BOTTOM).calcs([])).no_value("-")
    panel = _colored(panel, colors, prefix="grade " if part == "grade" else "")
    panel = panel if decimals is None else panel.decimals(decimals)
    return panel if most is None else panel.max(most)


def made(title: str, uid: str, about: str, variables: Sequence[Any], rows: Mapping[str, Sequence[Panel]]) -> Any:
    """The dashboard of ``rows`` of panels by heading."""
    links = dashboard.DashboardLink("Pyrite's other dashboards").type(model.DashboardLinkType.DASHBOARDS)
    links = links.tags(["pyrite"]).as_dropdown(True).keep_time(True).include_vars(True)
    board = dashboard.Dashboard(title).uid(uid).description(about).tags(["pyrite"]).timezone("browser").readonly()
    board = board.refresh("30s").time("now-3h", "now").tooltip(model.DashboardCursorSync.CROSSHAIR).link(links)
    for variable in (dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"), *variables):
        board = board.with_variable(variable)
    for heading, panels in rows.items():
        board = board.with_row(dashboard.Row(heading))
        for panel in panels:
            board = board.with_panel(panel)
    return board.build()


def variable(name: str, label: str, series: str, *, of: str | None = None, every: bool = True) -> Any:
    """A variable with the values of a label of ``series``; ``every``: all at once may be chosen, and are at first.

    All is .* and not a list, so that what was scraped without the label, as on one machine, is shown too.
    """
    made = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(f"label_values({series}, {of or name})")
    made = made.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.NATURAL_ASC)
    if not every:
        return made
    made = made.include_all(True).all_value(".*").multi(True)
    return made.current(model.VariableOption(selected=True, text="All", value="$__all"))


def _dressed(
    panel: Panel,
    title: str,
    about: str,
    unit: str,
    queries: Sequence[Query],
    steps: Steps,
    instant: bool = False,
) -> Panel:
    panel = panel.title(title).description(about).unit(unit).datasource(SOURCE)
    for letter, (expr, legend) in zip("ABCDEFGH", queries, strict=False):
        query = prometheus.Dataquery().expr(expr).legend_format(legend or title).ref_id(letter).datasource(SOURCE)
        if isinstance(panel, barchart.Panel):
            query = query.format(asked.PromQueryFormat.TABLE)
        panel = panel.with_target(query.instant() if instant else query.range())
    levels = [model.Threshold(value=value, color=color) for value, color in steps]
    if not isinstance(panel, stat.Panel):
        panel = panel.color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
    else:
        panel = panel.color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    return panel.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(levels))


def _fixed(color: str) -> Any:
    return dashboard.FieldColor().mode(model.FieldColorModeId.FIXED).fixed_color(color)


def _colored(panel: Panel, colors: Mapping[str, str], prefix: str = "") -> Panel:
    """Series by name in colours of their own, and with ``prefix`` before their names."""
    for name, color in colors.items():
        values = [model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})]
        if prefix:
            values.append(model.DynamicConfigValue(id_val="displayName", value=f"{prefix}{name}"))
        panel = panel.override_by_name(name, values)
    return panel


def _last() -> Any:
    return common.ReduceDataOptions().values(False).calcs(["lastNotNull"])


NAMESPACE = variable("namespace", "Namespace", "pyrite_controller_sync_seconds_count")
ITERATION = variable("iteration", "Iteration", f'{{__name__=~"pyrite_judge_pairs_total|pyrite_run_pairs", {RUN}}}')
