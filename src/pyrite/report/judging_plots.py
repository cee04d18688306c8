"""The report's plots of judging, each as those of ``plots``."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pyrite.report import formatting
from pyrite.report.figure import C, draw, series


def grades(report: dict[str, Any]) -> str | None:
    """Shares of the grades 1 to 4 per iteration; the first and the last ones where there are many."""
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
                named = f"iteration {row['iteration']}" if grade == 1 else None
                axes.bar(x, share, width * 0.9, color=series(row["iteration"]), label=named)
                axes.annotate(
                    formatting.percent(share, sign=False),
                    (x, share),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=C["mute"],
                )
        axes.set_xticks(range(1, 5), ["1\nirrelevant", "2", "3", "4\nrelevant"])
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("share of judged pairs")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.percent(value, sign=False)))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y")
        axes.margins(y=0.1)
        if len(rows) > 1:
            axes.legend(frameon=False, fontsize=8.5, loc="upper center", handlelength=1)

    said = "; ".join(
        f"iteration {row['iteration']}: " + ", ".join(f"grade {g} {n:,}" for g, n in row["grades"].items())
        for row in rows
    )
    return draw("grades", f"Grades that the judge gave. {said}.", paint)


def pace(report: dict[str, Any]) -> str | None:
    """Pairs judged a second over the time of each iteration's judging."""
    rows = _judged_long_enough(report)
    if not rows:
        return None

    def panel(axes: Axes, row: dict[str, Any], edges: list[float]) -> None:
        axes.stairs(row["pairs_per_second"], edges, fill=True, color=C["s1"], alpha=0.16, linewidth=0)
        axes.stairs(row["pairs_per_second"], edges, color=C["s1"], linewidth=1.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))

    said = "; ".join(
        f"iteration {row['iteration']}: {formatting.rate(min(row['pairs_per_second']))} to "
        f"{formatting.rate(max(row['pairs_per_second']))}"
        for row in rows
    )
    return _over_time("pace", f"Pairs judged a second over time, least and most. {said}.", rows, panel)


def drift(report: dict[str, Any]) -> str | None:
    """Shares of the grades over the time of each iteration's judging, and those of the iteration before."""
    rows = _judged_long_enough(report)
    if not rows:
        return None

    def panel(axes: Axes, row: dict[str, Any], edges: list[float]) -> None:
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        for grade, name in enumerate(("1, irrelevant", "2", "3", "4, relevant")):
            shares = [each[grade] if each else math.nan for each in row["shares"]]
            colour = C[f"g{grade + 1}"]
            axes.plot(middles, shares, color=colour, linewidth=1.5, marker="o", markersize=2, label=name)
            if row["before"]:
                axes.axhline(row["before"][grade], color=colour, linewidth=1, linestyle=(0, (4, 3)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.percent(value, sign=False)))
        if row is rows[0]:
            beside: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0, "ncols": 4}
            axes.legend(frameon=False, fontsize=8.5, handlelength=1.2, columnspacing=1.2, **beside)

    said = "; ".join(f"iteration {row['iteration']}: {_ends(row)}" for row in rows)
    return _over_time("drift", f"Shares of the grades while judging, first and last. {said}.", rows, panel)


def _judged_long_enough(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Iterations whose judging has a course to draw; the first and the last ones where there are many."""
    rows = [row for row in report["course"]["iterations"] if sum(each is not None for each in row["shares"]) >= 3]
    return rows if len(rows) <= 5 else [rows[0], *rows[-4:]]


def _over_time(
    name: str,
    description: str,
    rows: list[dict[str, Any]],
    panel: Callable[[Axes, dict[str, Any], list[float]], None],
) -> str:
    """A panel for each iteration's course; ``panel`` paints a row, given the edges of its slices."""
    longest = max(len(row["shares"]) * row["slice_seconds"] for row in rows)
    units = (("hours", 3600), ("minutes", 60), ("seconds", 1))
    unit, length = next((unit for unit in units if longest >= 3 * unit[1]), units[-1])

    def paint(*panels: Axes) -> None:
        for axes, row in zip(panels, rows, strict=True):
            edges = [number * row["slice_seconds"] / length for number in range(len(row["shares"]) + 1)]
            panel(axes, row, edges)
            axes.set_title(f"iteration {row['iteration']}", loc="left", fontsize=9, color=C["mute"])
            axes.set_xlim(0, edges[-1])
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        panels[0].set_ylim(bottom=0)
        panels[-1].set_xlabel(f"{unit} since the iteration's judging began")

    return draw(name, description, paint, 1 + 1.25 * len(rows), len(rows))


def _ends(row: dict[str, Any]) -> str:
    shares = [each for each in row["shares"] if each]
    ends = zip(range(1, 5), shares[0], shares[-1], strict=True)
    return ", ".join(
        f"grade {grade} {formatting.percent(first, sign=False)} to {formatting.percent(last, sign=False)}"
        for grade, first, last in ends
    )
