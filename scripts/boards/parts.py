"""What the dashboards are built of: panels with a unit, a description and thresholds each, and the variables.

A dashboard is 24 columns wide; widths of a line of panels add up to 24, and six numbers side by side are still readable
at 1280 pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model

Panel = Any  # the builders of panels have no base of their own

SOURCE = options.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, AMBER, RED = "green", "orange", "red"


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


def number(
    title: str,
    about: str,
    unit: str,
    query: Query,
    steps: Sequence[tuple[float, str]] = (),
    decimals: int | None = None,
) -> Panel:
    """One number as it is now; ``steps`` are the values from which on it is coloured."""
    panel = _dressed(stat.Panel(), title, about, unit, [query], steps, instant=True).span(4).height(4)
    panel = panel.graph_mode(options.BigValueGraphMode.NONE).reduce_options(_last()).no_value("-")
    return panel if decimals is None else panel.decimals(decimals)


def words(title: str, about: str, query: Query, colors: dict[str, str]) -> Panel:
    """The name of the one series that there is, in a colour of its own."""
    panel = _dressed(stat.Panel(), title, about, "none", [query], (), instant=True).span(4).height(4)
    panel = panel.graph_mode(options.BigValueGraphMode.NONE).reduce_options(_last()).no_value("-")
    panel = panel.text_mode(options.BigValueTextMode.NAME)
    for name, color in colors.items():
        fixed = {"mode": "fixed", "fixedColor": color}
        panel = panel.override_by_name(name, [model.DynamicConfigValue(id_val="color", value=fixed)])
    return panel


def over_time(
    title: str,
    about: str,
    unit: str,
    *queries: Query,
    width: int = 12,
    stacked: bool = False,
    most: float | None = None,
    steps: Sequence[tuple[float, str]] = (),
) -> Panel:
    """Lines over time, or what adds up, stacked; ``most``: end of the axis. ``steps`` are drawn as lines."""
    panel = _dressed(timeseries.Panel(), title, about, unit, queries, steps).span(width).height(8).min(0)
    panel = panel.fill_opacity(30 if stacked else 5).line_width(1).show_points(options.VisibilityMode.AUTO)
    legend = common.VizLegendOptions().show_legend(True).display_mode(options.LegendDisplayMode.TABLE)
    panel = panel.legend(legend.placement(options.LegendPlacement.BOTTOM).calcs(["lastNotNull", "max"]))
    panel = panel.tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI))
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if steps:
        style = common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds_style(style)
    return panel if most is None else panel.max(most)


def bars(
    title: str,
    about: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    most: float | None = None,
    decimals: int | None = None,
    steps: Sequence[tuple[float, str]] = (),
) -> Panel:
    """A bar for each series, as it is now."""
    panel = _dressed(bargauge.Panel(), title, about, unit, queries, steps, instant=True).span(width).height(8).min(0)
    panel = panel.orientation(options.VizOrientation.HORIZONTAL).display_mode(options.BarGaugeDisplayMode.BASIC)
    panel = panel.reduce_options(_last()).no_value("-")
    panel = panel if decimals is None else panel.decimals(decimals)
    return panel if most is None else panel.max(most)


def made(title: str, uid: str, about: str, variables: Sequence[Any], rows: dict[str, Sequence[Panel]]) -> Any:
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
    steps: Sequence[tuple[float, str]],
    instant: bool = False,
) -> Panel:
    panel = panel.title(title).description(about).unit(unit).datasource(SOURCE)
    for letter, (expr, legend) in zip("ABCDEFGH", queries, strict=False):
        query = prometheus.Dataquery().expr(expr).legend_format(legend or title).ref_id(letter).datasource(SOURCE)
        panel = panel.with_target(query.instant() if instant else query.range())
    levels = [model.Threshold(value=None, color=GREEN), *(model.Threshold(value=v, color=c) for v, c in steps)]
    scheme = model.FieldColorModeId.THRESHOLDS if steps else model.FieldColorModeId.PALETTE_CLASSIC
    if isinstance(panel, timeseries.Panel):
        scheme = model.FieldColorModeId.PALETTE_CLASSIC
    panel = panel.color_scheme(dashboard.FieldColor().mode(scheme))
    return panel.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(levels))


def _last() -> Any:
    return common.ReduceDataOptions().values(False).calcs(["lastNotNull"])


NAMESPACE = variable("namespace", "Namespace", "pyrite_controller_turn_seconds_count")
ITERATION = variable("iteration", "Iteration", f'{{__name__=~"pyrite_judge_pairs_total|pyrite_run_pairs", {RUN}}}')
