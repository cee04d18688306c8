"""The report's plots of models and training. Each function takes the report and returns an SVG, or None where there is
nothing to draw.
"""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pyrite.evaluation.scoring import METRICS
from pyrite.evaluation.selection import BASE, label, parse_model_name
from pyrite.report import formatting
from pyrite.report.figure import C, draw, percent_axis, series, value_axis


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
            colour = C[formatting.direction(row) or "mute"]
            if low is not None and high is not None:
                axes.plot([low, high], [y, y], color=colour, linewidth=3.5, alpha=0.45, solid_capstyle="round")
            axes.plot(row["relative"], y, "o", color=colour, markersize=7)
            axes.annotate(
                formatting.minus(formatting.percent(row["relative"])),
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
        percent_axis(axes.xaxis)

    said = ", ".join(f"{METRICS[name].label} {formatting.percent(row['relative'])}" for name, row in rows)
    return draw("changes", f"Change from the base model with 95% intervals: {said}.", paint)


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
                f"{split} {formatting.number(y[-1])}",
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
                f"chosen {formatting.number(chosen['mrr@5'])}",
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
        value_axis(axes.yaxis)

    ends = [(split, row[split]["mrr@5"]) for row in (curve[0], curve[-1]) for split in ("val", "test") if row[split]]
    said = ", ".join(f"{split} {formatting.number(value)}" for split, value in ends)
    return draw("learning", f"MRR@5 by iteration, first and last: {said}.", paint)


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
        percent_axis(axes.yaxis)
        if kept:
            percent_axis(axes.xaxis)
        axes.legend(frameon=False, fontsize=8, loc="best", handlelength=1.4)

    said = ", ".join(f"{label(row['name'])} {formatting.percent(row['val_change'])}" for row in rows)
    title = f"Score (mean of MRR@5 and DCG@5) gained on validation per candidate: {said}."
    return draw("tradeoff", title, paint, height=3.5)


def shifts(report: dict[str, Any]) -> str | None:
    """Rank of the first relevant passage before and after; the area of a dot is the number of queries."""
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
    return draw("shifts", f"Rank of the first relevant passage, base against tuned: {said}.", paint, height=4.1)


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
        value_axis(axes.yaxis)

    said = ", ".join(
        f"iteration {row['iteration']} from {row['points'][0][1]:.3f} to {row['points'][-1][1]:.3f}" for row in rows
    )
    return draw("loss", f"Training loss: {said}.", paint)
