"""The plots of the report. Each function takes the report and returns an SVG, or None if there is nothing to draw."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import BASE, label, parse_model_name
from pyrite.report import formatting
from pyrite.report.figure import C, annotate, draw, percent_axis, series, share_axis, value_axis

_GRADE_NAMES = ("1 (not relevant)", "2", "3", "4 (full answer)")


# --- models -----------------------------------------------------------------------------------------------------------


def changes(report: dict[str, Any]) -> str | None:
    """Relative change of each metric with its confidence interval, and the gain that the gate requires."""
    comparison = formatting.headline(report).get(report["compared"])
    rows = [(name, comparison[name]) for name in METRICS if comparison and comparison[name]["relative"] is not None]
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=C["mute"], linewidth=1)
        for y, (name, row) in enumerate(rows):
            low, high = row["relative_interval"]["low"], row["relative_interval"]["high"]
            colour = C[formatting.direction(row) or "mute"]
            if low is not None and high is not None:
                axes.plot([low, high], [y, y], color=colour, linewidth=3.5, alpha=0.45, solid_capstyle="round")
            axes.plot(row["relative"], y, "o", color=colour, markersize=7)
            value = formatting.minus(formatting.percent(row["relative"]))
            annotate(axes, value, (row["relative"], y), (0, 7), ha="center")
            required = report["gate"]["required"].get(name)
            if required is not None:
                axes.plot([required, required], [y - 0.3, y + 0.3], color=C["gold"], linewidth=2)
        axes.set_yticks(range(len(rows)), [METRICS[name].label for name, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=C["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.margins(x=0.08)
        axes.set_xlabel("change from the base model")
        percent_axis(axes.xaxis)

    values = ", ".join(f"{METRICS[name].label} {formatting.percent(row['relative'])}" for name, row in rows)
    return draw("changes", f"Relative change from the base model with 95% confidence intervals: {values}.", paint)


def learning(report: dict[str, Any]) -> str | None:
    """MRR@5 by iteration on validation and test."""
    curve = report["learning_curve"]
    if len(curve) < 2:
        return None
    names = {"val": "validation", "test": "test"}

    def paint(axes: Axes) -> None:
        last_values = {split: curve[-1][split]["mrr@5"] for split in names if curve[-1][split]}
        upper = max(last_values, key=last_values.__getitem__, default="test")
        close = len(last_values) == 2 and abs(last_values["val"] - last_values["test"]) < 0.02
        for split, colour, dashes in (("val", C["mute"], (4, 2)), ("test", C["s1"], (1, 0))):
            points = [(row["iteration"], row[split]["mrr@5"]) for row in curve if row[split]]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker="o", color=colour, dashes=dashes)
            offset = (8, (6 if split == upper else -6) if close else 0)
            text = f"{names[split]} {formatting.number(y[-1])}"
            annotate(axes, text, (x[-1], y[-1]), offset, va="center", color=colour, annotation_clip=False)
        _interval_band(axes, report)
        last = curve[-1]["iteration"]
        chosen = report["means"]["test"].get(report["chosen"])
        iteration, weight = parse_model_name(report["chosen"])
        if chosen and 0 < weight < 1:
            point = (iteration, chosen["mrr@5"])
            axes.plot(*point, "D", color=C["gold"], markersize=7, zorder=4)
            offset, align = ((8, -11), "left") if iteration < last else ((-9, -11), "right")
            text = f"chosen {formatting.number(chosen['mrr@5'])}"
            annotate(axes, text, point, offset, ha=align, va="center", color=C["gold"])
        axes.set_xlim(-0.12 * last, last * 1.4)
        axes.set_xticks(range(0, last + 1, max(1, last // 8)))
        axes.set_xlabel("iteration (0 is the base model)")
        axes.set_ylabel("MRR@5")
        axes.grid(axis="y")
        axes.margins(y=0.12)
        value_axis(axes.yaxis)

    values = "; ".join(
        f"{label(row['model'])}: "
        + ", ".join(f"{names[split]} {formatting.number(row[split]['mrr@5'])}" for split in names if row[split])
        for row in (curve[0], curve[-1])
    )
    return draw("learning", f"MRR@5 by iteration. {values}.", paint)


def _interval_band(axes: Axes, report: dict[str, Any]) -> None:
    """The confidence interval of the change from the base model, drawn around the test curve."""
    rows = []
    for row in report["learning_curve"]:
        comparison = report["comparisons"].get(row["model"])
        interval = comparison["mrr@5"]["difference_interval"] if comparison else {"low": 0.0, "high": 0.0}
        if row["test"] and interval["low"] is not None:
            base = report["means"]["test"][BASE]["mrr@5"]
            rows.append((row["iteration"], base + interval["low"], base + interval["high"]))
    if len(rows) > 1:
        x, low, high = zip(*rows, strict=True)
        axes.fill_between(x, low, high, color=C["s1"], alpha=0.16, linewidth=0)


def tradeoff(report: dict[str, Any]) -> str | None:
    """Gain on validation against the change on the retention set or, without such a set, against the tuned weight."""
    rows = [row for row in report["candidates"] if row["val_change"] is not None]
    if len(rows) < 2:
        return None
    retention = all(row["retention_change"] is not None for row in rows)

    def point(row: dict[str, Any]) -> tuple[float, float]:
        return (row["retention_change"] if retention else row["weight"]), row["val_change"]

    def paint(axes: Axes) -> None:
        base = next(row for row in rows if row["name"] == BASE)
        chosen = next(row for row in rows if row["chosen"])
        iterations = sorted({row["iteration"] for row in rows} - {0})
        # With many iterations, only the first, the last and the chosen one are drawn in colour.
        coloured = iterations if len(iterations) <= 4 else {iterations[0], iterations[-1], chosen["iteration"]}
        for iteration in iterations:
            members = sorted((row for row in rows if row["iteration"] == iteration), key=lambda row: row["weight"])
            x, y = zip(*(point(row) for row in (base, *members)), strict=True)
            if iteration not in coloured:
                axes.plot(x, y, color=C["line"], linewidth=1, marker="o", markersize=3, zorder=1)
                continue
            colour = series(iteration)
            axes.plot(x, y, color=colour, linewidth=1.3, marker="o", label=f"iteration {iteration}")
            for row in members if retention else ():
                annotate(axes, f"{row['weight']:g}", point(row), (0, 6), ha="center", fontsize=8, color=colour)
        axes.plot(*point(base), "o", color=C["ink"], markersize=7, label="base model", zorder=4)
        ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": C["gold"], "markeredgewidth": 2.4}
        axes.plot(*point(chosen), "o", markersize=13, label="chosen", zorder=5, **ring)
        if retention and report["max_loss"] is not None:
            limit = -report["max_loss"]
            axes.axvline(limit, color=C["down"], linewidth=1.1, linestyle=(0, (4, 3)))
            annotate(
                axes, "allowed loss", (limit, 0.02), (3, 0), ("data", "axes fraction"), fontsize=8, color=C["down"]
            )
        axes.set_xlabel("change of nDCG@10 on the retention set" if retention else "tuned weight (1: not blended)")
        axes.set_ylabel("score gain on validation")
        axes.grid()
        axes.margins(0.1, 0.14)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        percent_axis(axes.yaxis)
        if retention:
            percent_axis(axes.xaxis)
        axes.legend(frameon=False, fontsize=8, loc="best", handlelength=1.4)

    values = ", ".join(f"{label(row['name'])} {formatting.percent(row['val_change'])}" for row in rows)
    title = f"Gain of each candidate on validation (mean of MRR@5 and DCG@5): {values}."
    return draw("tradeoff", title, paint, height=3.5)


def rank_changes(report: dict[str, Any]) -> str | None:
    """Rank of the first relevant passage before and after. The area of a dot is the number of queries."""
    found = report["rank_changes"]
    if not found["pairs"] or report["compared"] == BASE:
        return None
    beyond = 11

    def paint(axes: Axes) -> None:
        most = max(count for _, _, count in found["pairs"])
        axes.plot([0.5, beyond + 0.5], [0.5, beyond + 0.5], color=C["line"], linewidth=1, zorder=0)
        for before, after, count in found["pairs"]:
            x, y = before or beyond, after or beyond
            colour = C["up"] if y < x else C["down"] if y > x else C["mute"]
            axes.scatter(x, y, s=8 + 330 * count / most, color=colour, alpha=0.75, linewidths=0)
        names = [str(rank) for rank in range(1, beyond)] + [">10"]
        axes.set_xticks(range(1, beyond + 1), names)
        axes.set_yticks(range(1, beyond + 1), names)
        axes.set_xlim(0.3, beyond + 0.7)
        axes.set_ylim(beyond + 0.7, 0.3)
        axes.tick_params(length=0)
        axes.set_xlabel("rank with the base model")
        axes.set_ylabel(f"rank with {label(report['compared'])}")
        axes.grid(alpha=0.6)
        axes.set_aspect("equal")

    counts = (
        f"{found['improved']} improved, {found['unchanged']} unchanged, {found['worsened']} worsened, "
        f"{found['neither']} not among the first 10 of either model"
    )
    title = f"Rank of the first relevant passage, base model against tuned model: {counts}."
    return draw("rank_changes", title, paint, height=4.1)


# --- training data and loss -------------------------------------------------------------------------------------------


def grades(report: dict[str, Any]) -> str | None:
    """Shares of the grades 1 to 4 by iteration. With many iterations, the first and the last three."""
    rows = [row for row in report["mining"] if sum(row["grades"].values())]
    rows = rows if len(rows) <= 4 else [rows[0], *rows[-3:]]
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        width = 0.8 / len(rows)
        for number, row in enumerate(rows):
            total = sum(row["grades"].values())
            for grade in range(1, 5):
                share = row["grades"][str(grade)] / total
                x = grade + (number - (len(rows) - 1) / 2) * width
                name = f"iteration {row['iteration']}" if grade == 1 else None
                axes.bar(x, share, width * 0.9, color=series(row["iteration"]), label=name)
                text = formatting.percent(share, sign=False)
                annotate(axes, text, (x, share), (0, 2), ha="center", fontsize=8, color=C["mute"])
        axes.set_xticks(range(1, 5), [name.replace(" ", "\n", 1) for name in _GRADE_NAMES])
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("share of judged pairs")
        share_axis(axes.yaxis)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y")
        axes.margins(y=0.1)
        if len(rows) > 1:
            axes.legend(frameon=False, fontsize=8.5, loc="upper center", handlelength=1)

    counts = "; ".join(
        f"iteration {row['iteration']}: " + ", ".join(f"grade {g} {n:,}" for g, n in row["grades"].items())
        for row in rows
    )
    return draw("grades", f"Number of judged pairs by grade. {counts}.", paint)


def loss(report: dict[str, Any]) -> str | None:
    """Training loss by step, one line per iteration."""
    rows = [row for row in report["loss"] if len(row["points"]) > 1]
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        for row in rows:
            x, y = zip(*row["points"], strict=True)
            axes.plot(x, y, color=series(row["iteration"]), linewidth=1.5, label=f"iteration {row['iteration']}")
        axes.set_xlabel("training step")
        axes.set_ylabel("loss")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        axes.legend(frameon=False, fontsize=8.5, loc="upper right", handlelength=1.4)
        value_axis(axes.yaxis)

    values = ", ".join(
        f"iteration {row['iteration']} from {row['points'][0][1]:.3f} to {row['points'][-1][1]:.3f}" for row in rows
    )
    return draw("loss", f"Training loss: {values}.", paint)


# --- judging over time ------------------------------------------------------------------------------------------------


def judging_speed(report: dict[str, Any]) -> str | None:
    """Pairs judged per second over the time of each iteration."""
    rows = _drawable_timelines(report)
    if not rows:
        return None

    def paint(axes: Axes, row: dict[str, Any], edges: list[float]) -> None:
        axes.stairs(row["pairs_per_second"], edges, fill=True, color=C["s1"], alpha=0.16, linewidth=0)
        axes.stairs(row["pairs_per_second"], edges, color=C["s1"], linewidth=1.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))

    ranges = "; ".join(
        f"iteration {row['iteration']}: {formatting.rate(min(row['pairs_per_second']))} to "
        f"{formatting.rate(max(row['pairs_per_second']))}"
        for row in rows
    )
    return _draw_over_time("judging_speed", f"Pairs judged per second over time, range. {ranges}.", rows, paint)


def judging_grades(report: dict[str, Any]) -> str | None:
    """Shares of the grades over the time of each iteration, and those of the iteration before."""
    rows = _drawable_timelines(report)
    if not rows:
        return None

    def paint(axes: Axes, row: dict[str, Any], edges: list[float]) -> None:
        centres = [(low + high) / 2 for low, high in pairwise(edges)]
        for grade, name in enumerate(_GRADE_NAMES):
            shares = [each[grade] if each else math.nan for each in row["grade_shares"]]
            colour = C[f"g{grade + 1}"]
            axes.plot(centres, shares, color=colour, linewidth=1.5, marker="o", markersize=2, label=name)
            if row["previous_shares"]:
                axes.axhline(row["previous_shares"][grade], color=colour, linewidth=1, linestyle=(0, (4, 3)))
        share_axis(axes.yaxis)
        if row is rows[0]:
            position: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0, "ncols": 4}
            axes.legend(frameon=False, fontsize=8.5, handlelength=1.2, columnspacing=1.2, **position)

    ends = "; ".join(f"iteration {row['iteration']}: {_first_and_last(row)}" for row in rows)
    return _draw_over_time("judging_grades", f"Shares of the grades over time, first to last. {ends}.", rows, paint)


def _first_and_last(row: dict[str, Any]) -> str:
    shares = [each for each in row["grade_shares"] if each]
    ends = zip(range(1, 5), shares[0], shares[-1], strict=True)
    return ", ".join(
        f"grade {grade} {formatting.percent(first, sign=False)} to {formatting.percent(last, sign=False)}"
        for grade, first, last in ends
    )


def _drawable_timelines(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Iterations with at least three slices that have shares. With many iterations, the first and the last four."""
    rows = [
        row
        for row in report["judging_timeline"]["iterations"]
        if sum(each is not None for each in row["grade_shares"]) >= 3
    ]
    return rows if len(rows) <= 5 else [rows[0], *rows[-4:]]


def _draw_over_time(
    name: str,
    description: str,
    rows: list[dict[str, Any]],
    paint_row: Callable[[Axes, dict[str, Any], list[float]], None],
) -> str:
    """One panel per iteration. ``paint_row`` gets the axes, the iteration and the edges of its slices."""
    longest = max(len(row["grade_shares"]) * row["slice_seconds"] for row in rows)
    units = (("hours", 3600), ("minutes", 60), ("seconds", 1))
    unit, length = next((unit for unit in units if longest >= 3 * unit[1]), units[-1])

    def paint(*panels: Axes) -> None:
        for axes, row in zip(panels, rows, strict=True):
            edges = [number * row["slice_seconds"] / length for number in range(len(row["grade_shares"]) + 1)]
            paint_row(axes, row, edges)
            axes.set_title(f"iteration {row['iteration']}", loc="left", fontsize=9, color=C["mute"])
            axes.set_xlim(0, edges[-1])
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        panels[0].set_ylim(bottom=0)
        panels[-1].set_xlabel(f"{unit} since the judging of the iteration started")

    return draw(name, description, paint, 1 + 1.25 * len(rows), len(rows))
