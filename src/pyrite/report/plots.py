"""The report's plots: inline SVG drawn by matplotlib, the same bytes for the same numbers.

Colours are CSS variables of the page, so that one drawing reads in light, in dark and on paper; texts stay
texts, in the page's font. Each function takes the report and returns an SVG, or None where there is nothing
to draw.
"""

import io
import math
import re
from collections.abc import Callable
from html import escape
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import BASE, label, parse_model_name
from pyrite.report import words

# matplotlib takes no CSS variables: each name is drawn in a colour of its own that is replaced afterwards.
_NAMES = (
    "ink",
    "mute",
    "line",
    "paper",
    "gold",
    "up",
    "down",
    "s1",
    "s2",
    "s3",
    "s4",
    "g1",
    "g2",
    "g3",
    "g4",
)
C = {name: f"#0102{number:02x}" for number, name in enumerate(_NAMES)}

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": C["ink"],
    "axes.edgecolor": C["line"],
    "axes.labelcolor": C["mute"],
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": C["line"],
    "ytick.color": C["line"],
    "xtick.labelcolor": C["mute"],
    "ytick.labelcolor": C["mute"],
    "grid.color": C["line"],
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


def series(iteration: int) -> str:
    """Colour of an iteration."""
    return C[f"s{(iteration - 1) % 4 + 1}"]


def _draw(name: str, description: str, paint: Any, height: float = 3.1, panels: int = 1) -> str:
    """``paint`` is called with so many axes, one below the other, on one scale of y."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(*figure.subplots(panels, sharey=True, squeeze=False)[:, 0])
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _inline(buffer.getvalue(), name, description)


def _inline(svg: str, name: str, description: str) -> str:
    """A whole SVG file as an element of the page: ids of its own, CSS variables, a description."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", svg)
    for key, colour in C.items():
        svg = svg.replace(colour, f"var(--{key})")
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None
    head = f'<svg class="plot" viewBox="{box[1]}" role="img" aria-label="{escape(description)}"'
    return re.sub(r"<svg[^>]*", f'{head} xmlns:xlink="http://www.w3.org/1999/xlink"', svg, count=1)


def _percent_axis(axis: Any) -> None:
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: words.minus(_tick(value))))


def _value_axis(axis: Any) -> None:
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: words.number(value, 2)))


def _tick(share: float) -> str:
    percent = round(100 * share, 6)
    return f"{percent:+g}%" if percent else "0%"


# --- the plots
# ---------------------------------------------------------------------------------------------------------


def changes(report: dict[str, Any]) -> str | None:
    """Relative change of each metric with its interval, and what the gate asks for."""
    of = report["comparisons"].get(report["compared"])
    rows = [(name, of[name]) for name in METRICS if of and of[name]["relative"] is not None]
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=C["mute"], linewidth=1)
        for y, (name, row) in enumerate(rows):
            low, high = row["relative_interval"]["low"], row["relative_interval"]["high"]
            colour = C[words.direction(row) or "mute"]
            if low is not None and high is not None:
                axes.plot([low, high], [y, y], color=colour, linewidth=3.5, alpha=0.45, solid_capstyle="round")
            axes.plot(row["relative"], y, "o", color=colour, markersize=7)
            axes.annotate(
                words.minus(words.percent(row["relative"])),
                (row["relative"], y),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
            )
            wanted = report["gate"]["wanted"].get(name)
            if wanted is not None:
                axes.plot([wanted, wanted], [y - 0.3, y + 0.3], color=C["gold"], linewidth=2)
        axes.set_yticks(range(len(rows)), [METRICS[name].label for name, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=C["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.margins(x=0.08)
        axes.set_xlabel("change from the base model")
        _percent_axis(axes.xaxis)

    said = ", ".join(f"{METRICS[name].label} {words.percent(row['relative'])}" for name, row in rows)
    return _draw("changes", f"Change from the base model with 95% intervals: {said}.", paint)


def learning(report: dict[str, Any]) -> str | None:
    """MRR@5 over iterations, on val and test."""
    curve = report["curve"]
    if len(curve) < 2:
        return None

    def paint(axes: Axes) -> None:
        ends = {split: curve[-1][split]["mrr@5"] for split in ("val", "test") if curve[-1][split]}
        above = max(ends, key=ends.__getitem__, default="test")
        close = len(ends) == 2 and abs(ends["val"] - ends["test"]) < 0.02
        for split, colour, dashes in (("val", C["mute"], (4, 2)), ("test", C["s1"], (1, 0))):
            points = [(row["iteration"], row[split]["mrr@5"]) for row in curve if row[split]]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker="o", color=colour, dashes=dashes)
            axes.annotate(
                f"{split} {words.number(y[-1])}",
                (x[-1], y[-1]),
                xytext=(8, (6 if split == above else -6) if close else 0),
                textcoords="offset points",
                va="center",
                color=colour,
                annotation_clip=False,
            )
        _band(axes, report)
        chosen = report["means"]["test"].get(report["chosen"])
        iteration, weight = parse_model_name(report["chosen"])
        if chosen and 0 < weight < 1:
            axes.plot(iteration, chosen["mrr@5"], "D", color=C["gold"], markersize=7, zorder=4)
            axes.annotate(
                f"chosen {words.number(chosen['mrr@5'])}",
                (iteration, chosen["mrr@5"]),
                xytext=(8 if iteration < curve[-1]["iteration"] else -9, -11),
                textcoords="offset points",
                ha="left" if iteration < curve[-1]["iteration"] else "right",
                va="center",
                color=C["gold"],
            )
        last = curve[-1]["iteration"]
        axes.set_xlim(-0.12 * last, last * 1.26)
        axes.set_xticks(range(0, last + 1, max(1, last // 8)))
        axes.set_xlabel("iteration (0 is the base model)")
        axes.set_ylabel("MRR@5")
        axes.grid(axis="y")
        axes.margins(y=0.12)
        _value_axis(axes.yaxis)

    ends = [(split, row[split]["mrr@5"]) for row in (curve[0], curve[-1]) for split in ("val", "test") if row[split]]
    said = ", ".join(f"{split} {words.number(value)}" for split, value in ends)
    return _draw("learning", f"MRR@5 by iteration, first and last: {said}.", paint)


def _band(axes: Axes, report: dict[str, Any]) -> None:
    """The interval of the change from base, laid around the test curve."""
    rows = []
    for row in report["curve"]:
        of = report["comparisons"].get(row["model"])
        found = of["mrr@5"]["difference_interval"] if of else {"low": 0.0, "high": 0.0}
        if row["test"] and found["low"] is not None:
            base = report["means"]["test"][BASE]["mrr@5"]
            rows.append((row["iteration"], base + found["low"], base + found["high"]))
    if len(rows) > 1:
        x, low, high = zip(*rows, strict=True)
        axes.fill_between(x, low, high, color=C["s1"], alpha=0.16, linewidth=0)


def tradeoff(report: dict[str, Any]) -> str | None:
    """Gain on val against what is kept elsewhere; without a retention set, gain by share of tuned weights."""
    rows = [row for row in report["candidates"] if row["val_change"] is not None]
    kept = all(row["retention_change"] is not None for row in rows)
    if len(rows) < 2:
        return None

    def place(row: dict[str, Any]) -> tuple[float, float]:
        return (row["retention_change"] if kept else row["weight"]), row["val_change"]

    def paint(axes: Axes) -> None:
        base = next(row for row in rows if row["name"] == BASE)
        chosen = next(row for row in rows if row["chosen"])
        iterations = sorted({row["iteration"] for row in rows} - {0})
        # Lines in full colour: all where there are few, else the first, the last and the chosen's.
        told = iterations if len(iterations) <= 4 else {iterations[0], iterations[-1], chosen["iteration"]}
        for iteration in iterations:
            own = sorted((r for r in rows if r["iteration"] == iteration), key=lambda r: r["weight"])
            x, y = zip(*(place(row) for row in (base, *own)), strict=True)
            if iteration not in told:
                axes.plot(x, y, color=C["line"], linewidth=1, marker="o", markersize=3, zorder=1)
                continue
            axes.plot(x, y, color=series(iteration), linewidth=1.3, marker="o", label=f"iteration {iteration}")
            for row in own if kept else ():
                axes.annotate(
                    f"{row['weight']:g}",
                    place(row),
                    xytext=(0, 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=series(iteration),
                )
        axes.plot(*place(base), "o", color=C["ink"], markersize=7, label="base model", zorder=4)
        ring: dict[str, Any] = {
            "markerfacecolor": "none",
            "markeredgecolor": C["gold"],
            "markeredgewidth": 2.4,
        }
        axes.plot(*place(chosen), "o", markersize=13, label="chosen", zorder=5, **ring)
        if kept and report["max_loss"] is not None:
            axes.axvline(-report["max_loss"], color=C["down"], linewidth=1.1, linestyle=(0, (4, 3)))
            axes.annotate(
                "allowed loss",
                (-report["max_loss"], 0.02),
                xycoords=("data", "axes fraction"),
                xytext=(3, 0),
                textcoords="offset points",
                color=C["down"],
                fontsize=8,
            )
        axes.set_xlabel(
            "nDCG@10 on the retention set, change from base" if kept else "share of tuned weights (1 is as trained)"
        )
        axes.set_ylabel("score gained on val")
        axes.grid()
        axes.margins(0.1, 0.14)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _percent_axis(axes.yaxis)
        if kept:
            _percent_axis(axes.xaxis)
        axes.legend(frameon=False, fontsize=8, loc="best", handlelength=1.4)

    said = ", ".join(f"{label(row['name'])} {words.percent(row['val_change'])}" for row in rows)
    title = f"Score (mean of MRR@5 and DCG@5) gained on validation per candidate: {said}."
    return _draw("tradeoff", title, paint, height=3.5)


def shifts(report: dict[str, Any]) -> str | None:
    """Rank of the first relevant chunk before and after; the area of a dot is the number of queries."""
    of = report["shifts"]
    if not of["pairs"] or report["compared"] == BASE:
        return None
    beyond = 11

    def paint(axes: Axes) -> None:
        most = max(count for _, _, count in of["pairs"])
        axes.plot([0.5, beyond + 0.5], [0.5, beyond + 0.5], color=C["line"], linewidth=1, zorder=0)
        for before, after, count in of["pairs"]:
            x, y = before or beyond, after or beyond
            colour = C["up"] if y < x else C["down"] if y > x else C["mute"]
            axes.scatter(x, y, s=8 + 330 * count / most, color=colour, alpha=0.75, linewidths=0)
        names = [str(rank) for rank in range(1, beyond)] + [">10"]
        axes.set_xticks(range(1, beyond + 1), names)
        axes.set_yticks(range(1, beyond + 1), names)
        axes.set_xlim(0.3, beyond + 0.7)
        axes.set_ylim(beyond + 0.7, 0.3)
        axes.tick_params(length=0)
        axes.set_xlabel("rank under the base model")
        axes.set_ylabel(f"rank under {label(report['compared'])}")
        axes.grid(alpha=0.6)
        axes.set_aspect("equal")

    said = f"{of['rose']} rose, {of['same']} stayed, {of['fell']} fell, {of['neither']} in neither's first 10"
    return _draw("shifts", f"Rank of the first relevant chunk, base against tuned: {said}.", paint, height=4.1)


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
                    words.percent(share, sign=False),
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
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.percent(value, sign=False)))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y")
        axes.margins(y=0.1)
        if len(rows) > 1:
            axes.legend(frameon=False, fontsize=8.5, loc="upper center", handlelength=1)

    said = "; ".join(
        f"iteration {row['iteration']}: " + ", ".join(f"grade {g} {n:,}" for g, n in row["grades"].items())
        for row in rows
    )
    return _draw("grades", f"Grades that the judge gave. {said}.", paint)


def loss(report: dict[str, Any]) -> str | None:
    """Training loss by step, a line per iteration."""
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
        _value_axis(axes.yaxis)

    said = ", ".join(
        f"iteration {row['iteration']} from {row['points'][0][1]:.3f} to {row['points'][-1][1]:.3f}" for row in rows
    )
    return _draw("loss", f"Training loss: {said}.", paint)


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
        f"iteration {row['iteration']}: {words.rate(min(row['pairs_per_second']))} to "
        f"{words.rate(max(row['pairs_per_second']))}"
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
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.percent(value, sign=False)))
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

    return _draw(name, description, paint, 1 + 1.25 * len(rows), len(rows))


def _ends(row: dict[str, Any]) -> str:
    shares = [each for each in row["shares"] if each]
    ends = zip(range(1, 5), shares[0], shares[-1], strict=True)
    return ", ".join(
        f"grade {grade} {words.percent(first, sign=False)} to {words.percent(last, sign=False)}"
        for grade, first, last in ends
    )
