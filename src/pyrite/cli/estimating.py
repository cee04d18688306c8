"""pyrite estimate, and the table of stages that it shares with `pyrite train --dry-run`."""

from typing import Annotated

import typer
from rich.table import Table

from pyrite.cli.common import Overrides, RunFile, StoreOption, console, run_from_file, show_no_go
from pyrite.config import load
from pyrite.costs import DEFAULT_MACHINE, JudgeCost, Machine
from pyrite.costs import machine as machine_named
from pyrite.errors import UserError
from pyrite.estimate import Estimate, estimate
from pyrite.estimate.llm import CASCADE_NOTE
from pyrite.estimate.workload import Workload, workload_of
from pyrite.executors.step import Run
from pyrite.report.formatting import NONE, dollars, duration, size
from pyrite.store import open_store


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command("estimate", rich_help_panel="Before a run")
    def command(
        run_file: RunFile,
        overrides: Overrides = None,
        store: StoreOption = "store",
        passages: Annotated[
            int | None,
            typer.Option("--passages", min=1, help="Estimate for this many passages; the source is not read."),
        ] = None,
        queries: Annotated[
            int | None,
            typer.Option("--queries", min=0, help="With --passages: the number of training queries of the source."),
        ] = None,
        machine: Annotated[str, typer.Option("--machine", help="Type of the machines with GPUs.")] = DEFAULT_MACHINE,
        machines: Annotated[int, typer.Option("--machines", min=1, help="Number of those machines.")] = 1,
    ) -> None:
        """Estimate a run: memory, disk, time and dollars of each stage; pairs and tokens of judging.

        The speed of this machine is measured for a second. The speed of GPUs and of LLMs is an estimate, unless
        `pyrite probe` has measured the judge.
        """
        if (passages is None) != (queries is None):
            raise UserError("--passages and --queries describe the data together: set both, or none to read the source")
        on = machine_named(machine)
        if passages is None or queries is None:
            run, work = run_from_file(run_file, overrides, store), None
        else:
            run = Run(load(run_file, overrides or ()), open_store(store), {})
            work = workload_of(run.spec, passages, queries)
        found = timed_estimate(run, on, machines, work)
        console.print(found.summary, highlight=False, markup=False)
        show_stages(found, on, machines)
        if found.assessing:
            console.print(found.assessing, highlight=False, markup=False)
        if found.all_judging is None:
            console.print("judging: free, no server", highlight=False)
            return
        _show_judging(found.all_judging, on, machines)
        if run.spec.judge.kind == "cascade":
            console.print(CASCADE_NOTE, highlight=False)
        show_no_go(run)
        if not found.all_judging.measured:
            console.print(
                f"`pyrite probe {run_file}` measures the judge's speed and its quality", highlight=False, markup=False
            )


def timed_estimate(run: Run, on: Machine, machines: int = 1, work: Workload | None = None) -> Estimate:
    """The estimate of a run, with a note in the terminal while the speed of this machine is measured."""
    with console.status("measuring the speed of this machine ..."):
        return estimate(run, on, machines, work)


def show_stages(found: Estimate, on: Machine, machines: int) -> None:
    """Print what each stage needs."""
    there = f"{machines} x {on.name}"
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for column in ("steps", "memory", "disk", "here", there, "dollars"):
        table.add_column(column, justify="right")
    for each in found.stages:
        here = NONE if each.here is None else duration(each.here)
        needs = size(each.memory), size(each.disk)
        table.add_row(each.stage, f"{each.steps}", *needs, here, duration(each.there), dollars(each.dollars))
    here = duration(sum(each.here or 0 for each in found.stages))
    elsewhere = duration(sum(each.there for each in found.stages))
    table.add_row("total", "", "", "", here, elsewhere, dollars(sum(each.dollars for each in found.stages)))
    console.print(table)
    console.print(
        f"Memory and disk are for one step, time and dollars for all steps. The run stores {size(found.store)}. Here, "
        "the speed of encoding was measured; other times follow from it or from measurements on other CPUs. The time "
        f"on {there} assumes that GPUs reach a fifth of their peak, and that steps run in parallel where they can. A "
        f"machine costs {on.dollars_per_hour} dollars an hour; stages without a GPU or an LLM need only a node at "
        f"{on.cpu_dollars_per_hour}.",
        highlight=False,
    )


def _show_judging(cost: JudgeCost, on: Machine, machines: int) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    requests = f" ({cost.requests} requests each)" if cost.requests > 1 else ""
    speed = "measured by the probe" if cost.measured else f"not measured yet ({on.speed_source})"
    for name, value in (
        ("pairs", f"{cost.pairs:,} at most{requests}; pairs cached by earlier runs are not judged again"),
        ("prompt tokens", f"{cost.prompt_tokens:,}, {cost.computed_tokens:,} of them computed, the rest cached"),
        ("machine", f"{machines} x {on.name} ({on.what})"),
        ("hours", f"{cost.hours:.1f}; speed: {speed}"),
        ("dollars", f"{cost.dollars:,.2f} at {on.dollars_per_hour} an hour ({on.price_source})"),
    ):
        table.add_row(name, value)
    console.print(table)
