"""Builders for panels, variables and dashboards.

A dashboard is 24 columns wide, and the widths of the panels in a line add up to 24. At 1280 pixels, six numbers fit in
a line.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from grafana_foundation_sdk.builders import barchart, bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus as prometheus_model

Panel = Any  # the SDK's panel builders have no common base class

SOURCE = options.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, AMBER, RED = "green", "orange", "red"
_NEUTRAL_COLOR, GREY = "text", "#808080"
PER_SECOND = "count:/s"

#: Colors by label value, the same on all dashboards.
GRADES = {"1": "blue", "2": "light-blue", "3": "light-green", "4": "green"}
OUTCOMES = {"judged": "blue", "cached": GREEN, "skipped": "light-green", "not_selected": GREY, "missing": RED}
EXAMPLES = {"hard": "purple", "easy": "light-blue", "accumulated": GREY, "title_pairs": "yellow"}
HARD_PASSAGES = {"positives": "purple", "negatives": AMBER}
MODELS = {"base": GREY, "tuned": "blue"}

#: Lower bound and color of each threshold; the first bound is None.
Thresholds = Sequence[tuple[float | None, str]]

#: For values that are neither good nor bad.
NEUTRAL: Thresholds = ((None, _NEUTRAL_COLOR),)


def higher_is_worse(amber: float, red: float) -> Thresholds:
    """Green below ``amber``, red from ``red``."""
    return ((None, GREEN), (amber, AMBER), (red, RED))


def higher_is_better(amber: float, green: float) -> Thresholds:
    """Red below ``amber``, green from ``green``."""
    return ((None, RED), (amber, AMBER), (green, GREEN))


#: Label matchers for the dashboards' variables.
IN_NAMESPACE = 'namespace=~"$namespace"'
IN_RUN = f'{IN_NAMESPACE}, run=~"$run"'
IN_ITERATION = f'{IN_RUN}, iteration=~"$iteration"'


_GPU_LEGEND = "{{pod}}: GPU {{gpu}}"


class Query(NamedTuple):
    """A PromQL expression and the legend of its series."""

    expr: str
    legend: str = ""


def rate(metric: str, labels: str, by: str = "") -> str:
    """Increase per second of a counter, summed ``by`` labels."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantiles(histogram: str, labels: str) -> list[Query]:
    """Queries for p50, p95 and p99 of a histogram."""
    return [
        Query(f"histogram_quantile({q}, {rate(f'{histogram}_bucket', labels, 'le')})", f"p{q * 100:g}")
        for q in (0.5, 0.95, 0.99)
    ]


def time_left(labels: str) -> str:
    """Seconds until the current iteration is judged; no value while there is no progress."""
    return (
        f"sum(run:pyrite_judge_work_left:sum{{{labels}}}) / (sum(run:pyrite_judge_work_done:rate10m{{{labels}}}) > 0)"
    )


def shares(series: str, label: str) -> str:
    """Share of each value of ``label`` within each iteration."""
    return f"sum by (iteration, {label}) ({series}) / on (iteration) group_left () (sum by (iteration) ({series}) > 0)"


def budget_used(labels: str) -> str:
    """Cost divided by the budget, for the run with the highest share."""
    cost, budget = (
        f"max by (namespace, run) (pyrite_run_cost_{name}{{{labels}}})" for name in ("dollars", "budget_dollars")
    )
    return f"max({cost} / ({budget} > 0))"


def gpu_panels(pod: str) -> list[Panel]:
    """Panels of the GPUs that are claimed by pods whose names match ``pod``, from the DCGM exporter's metrics.

    The exporter's labels ``namespace`` and ``pod`` name the pod that claims the GPU. Prometheus renames them to
    ``exported_...``, unless the scrape configuration has honorLabels: true.
    """

    def per_gpu(metric: str) -> str:
        renamed = f'{metric}{{exported_namespace=~"$namespace", exported_pod=~"{pod}"}}'
        honored = f'{metric}{{exported_pod="", {IN_NAMESPACE}, pod=~"{pod}"}}'
        return f'max by (pod, gpu) (label_join({renamed}, "pod", "", "exported_pod") or {honored})'

    used, free = per_gpu("DCGM_FI_DEV_FB_USED"), per_gpu("DCGM_FI_DEV_FB_FREE")
    return [
        time_series(
            "GPU utilization",
            "Share of time with at least one kernel running. A claimed GPU near 0% costs as much as a busy one. Empty "
            "without NVIDIA's DCGM exporter.",
            "percentunit",
            Query(f"{per_gpu('DCGM_FI_DEV_GPU_UTIL')} / 100", _GPU_LEGEND),
            thresholds=NEUTRAL,
            width=8,
            maximum=1,
            legend="names",
        ),
        time_series(
            "GPU memory used",
            "vLLM reserves most of it at start, whatever the load. Empty without NVIDIA's DCGM exporter.",
            "percentunit",
            Query(f"{used} / ({used} + {free})", _GPU_LEGEND),
            thresholds=NEUTRAL,
            width=8,
            maximum=1,
            legend="names",
        ),
        time_series(
            "GPU power",
            "A busy GPU is near its limit, which nvidia-smi shows. If it is far below at a high utilization, it waits "
            "for memory or for small batches. Empty without NVIDIA's DCGM exporter.",
            "watt",
            Query(per_gpu("DCGM_FI_DEV_POWER_USAGE"), _GPU_LEGEND),
            thresholds=NEUTRAL,
            width=8,
            legend="names",
        ),
    ]


def stat_panel(
    title: str,
    description: str,
    unit: str,
    query: Query,
    thresholds: Thresholds,
    decimals: int | None = None,
) -> Panel:
    """The current value as a number, colored by ``thresholds``."""
    panel = _configure(stat.Panel(), title, description, unit, [query], thresholds, instant=True).span(4).height(4)
    panel = panel.graph_mode(options.BigValueGraphMode.NONE).reduce_options(_last_value()).no_value("-")
    return panel if decimals is None else panel.decimals(decimals)


def name_panel(title: str, description: str, query: Query, colors: dict[str, str]) -> Panel:
    """The name of the only series, colored by ``colors``."""
    panel = _configure(stat.Panel(), title, description, "none", [query], NEUTRAL, instant=True).span(4).height(4)
    panel = panel.graph_mode(options.BigValueGraphMode.NONE).reduce_options(_last_value()).no_value("-")
    return _with_colors(panel.text_mode(options.BigValueTextMode.NAME), colors)


def time_series(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    thresholds: Thresholds,
    width: int = 12,
    stacked: bool = False,
    maximum: float | None = None,
    legend: Literal["table", "list", "names"] = "table",
    colors: Mapping[str, str] | None = None,
    dashed: str = "",
) -> Panel:
    """Lines over time, with thresholds as dashed lines.

    Args:
        maximum: end of the axis.
        legend: there is room for three lines: `table` for up to three series, `list` for more, `names` for long names.
        dashed: regular expression for reference series, which are drawn dashed.
    """
    panel = _configure(timeseries.Panel(), title, description, unit, queries, thresholds).span(width).height(8).min(0)
    panel = panel.fill_opacity(30 if stacked else 5).line_width(1).show_points(options.VisibilityMode.AUTO)
    mode = options.LegendDisplayMode.TABLE if legend == "table" else options.LegendDisplayMode.LIST
    below = common.VizLegendOptions().show_legend(True).display_mode(mode).placement(options.LegendPlacement.BOTTOM)
    panel = panel.legend(below.calcs({"table": ["lastNotNull", "max"], "list": ["lastNotNull"], "names": []}[legend]))
    panel = panel.tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI))
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if thresholds != NEUTRAL:
        style = common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds_style(style)
    if dashed:
        line = model.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]})
        grey = model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": GREY})
        panel = panel.override_by_regexp(f"/{dashed}/", [line, grey])
    panel = _with_colors(panel, colors or {})
    return panel if maximum is None else panel.max(maximum)


def bar_gauge(title: str, description: str, unit: str, *queries: Query, maximum: float | None = None) -> Panel:
    """One bar for the current value of each series, at most ten; ``maximum`` is the end of the bars."""
    panel = (
        _configure(bargauge.Panel(), title, description, unit, queries, NEUTRAL, instant=True).span(12).height(8).min(0)
    )
    panel = panel.orientation(options.VizOrientation.HORIZONTAL).display_mode(options.BarGaugeDisplayMode.BASIC)
    panel = panel.reduce_options(_last_value()).no_value("-").color_scheme(_fixed_color("blue"))
    return panel if maximum is None else panel.max(maximum)


def bar_chart(
    title: str,
    description: str,
    unit: str,
    query: Query,
    label: str,
    colors: Mapping[str, str],
    width: int = 12,
    maximum: float | None = None,
    decimals: int | None = None,
) -> Panel:
    """A stacked bar for each iteration, with one segment for each value of ``label``: current values."""
    panel = (
        _configure(barchart.Panel(), title, description, unit, [query], NEUTRAL, instant=True)
        .span(width)
        .height(8)
        .min(0)
    )
    # Grafana's bar chart needs a table with one row per iteration. Sort by number, so that 10 comes after 9.
    as_number = {"conversions": [{"targetField": "iteration", "destinationType": "number"}], "fields": {}}
    matrix = {"columnField": label, "rowField": "iteration", "valueField": "Value", "emptyValue": "null"}
    for id_, transformation_options in (
        ("sortBy", {"fields": {}, "sort": [{"field": label}]}),
        ("convertFieldType", as_number),
        ("sortBy", {"fields": {}, "sort": [{"field": "iteration"}]}),
        ("groupingToMatrix", matrix),
    ):
        panel = panel.with_transformation(model.DataTransformerConfig(id_val=id_, options=transformation_options))
    panel = panel.stacking(options.StackingMode.NORMAL).show_value(options.VisibilityMode.AUTO).fill_opacity(80)
    legend = common.VizLegendOptions().show_legend(True).display_mode(options.LegendDisplayMode.LIST)
    panel = panel.legend(legend.placement(options.LegendPlacement.BOTTOM).calcs([])).no_value("-")
    panel = _with_colors(panel, colors, prefix="grade " if label == "grade" else "")
    panel = panel if decimals is None else panel.decimals(decimals)
    return panel if maximum is None else panel.max(maximum)


def build_dashboard(
    title: str, uid: str, description: str, variables: Sequence[Any], rows: Mapping[str, Sequence[Panel]]
) -> Any:
    """Build a dashboard from ``rows`` of panels by heading."""
    links = dashboard.DashboardLink("Other Pyrite dashboards").type(model.DashboardLinkType.DASHBOARDS)
    links = links.tags(["pyrite"]).as_dropdown(True).keep_time(True).include_vars(True)
    board = dashboard.Dashboard(title).uid(uid).description(description).tags(["pyrite"]).timezone("browser").readonly()
    board = board.refresh("30s").time("now-3h", "now").tooltip(model.DashboardCursorSync.CROSSHAIR).link(links)
    for variable in (dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"), *variables):
        board = board.with_variable(variable)
    for heading, panels in rows.items():
        board = board.with_row(dashboard.Row(heading))
        for panel in panels:
            board = board.with_panel(panel)
    return board.build()


def variable(name: str, label: str, series: str, *, label_name: str | None = None, multi: bool = True) -> Any:
    """A variable with the values of a label of ``series``.

    Args:
        label_name: the label; default: ``name``.
        multi: allow several values, with All as the default. All is `.*` instead of a list, so that it also matches
            series without the label, such as those of a run on one machine.
    """
    query_variable = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(f"label_values({series}, {label_name or name})")
    )
    query_variable = query_variable.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(
        model.VariableSort.NATURAL_ASC
    )
    if not multi:
        return query_variable
    query_variable = query_variable.include_all(True).all_value(".*").multi(True)
    return query_variable.current(model.VariableOption(selected=True, text="All", value="$__all"))


def _configure(
    panel: Panel,
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    thresholds: Thresholds,
    instant: bool = False,
) -> Panel:
    panel = panel.title(title).description(description).unit(unit).datasource(SOURCE)
    for letter, (expr, legend) in zip("ABCDEFGH", queries, strict=False):
        query = prometheus.Dataquery().expr(expr).legend_format(legend or title).ref_id(letter).datasource(SOURCE)
        if isinstance(panel, barchart.Panel):
            query = query.format(prometheus_model.PromQueryFormat.TABLE)
        panel = panel.with_target(query.instant() if instant else query.range())
    levels = [model.Threshold(value=value, color=color) for value, color in thresholds]
    if not isinstance(panel, stat.Panel):
        panel = panel.color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
    else:
        panel = panel.color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    return panel.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(levels))


def _fixed_color(color: str) -> Any:
    return dashboard.FieldColor().mode(model.FieldColorModeId.FIXED).fixed_color(color)


def _with_colors(panel: Panel, colors: Mapping[str, str], prefix: str = "") -> Panel:
    """Color series by name, and show ``prefix`` before their names."""
    for name, color in colors.items():
        values = [model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})]
        if prefix:
            values.append(model.DynamicConfigValue(id_val="displayName", value=f"{prefix}{name}"))
        panel = panel.override_by_name(name, values)
    return panel


def _last_value() -> Any:
    return common.ReduceDataOptions().values(False).calcs(["lastNotNull"])


NAMESPACE = variable("namespace", "Namespace", "pyrite_controller_sync_seconds_count")
ITERATION = variable("iteration", "Iteration", f'{{__name__=~"pyrite_judge_pairs_total|pyrite_run_pairs", {IN_RUN}}}')
