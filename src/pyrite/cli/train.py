"""pyrite train: a complete run on this machine."""

import json
from typing import Annotated

import typer
from rich.table import Table

from pyrite import metrics_server
from pyrite.cli.common import Overrides, RunFile, StoreOption, console, run_from_file
from pyrite.cli.display import Display
from pyrite.embedding.checks import model_notes
from pyrite.embedding.models import base_folder
from pyrite.errors import PyriteError, UserError
from pyrite.estimate import estimate
from pyrite.executors.local import execute
from pyrite.executors.run_metrics import RunMetrics
from pyrite.executors.step import Run
from pyrite.report import terminal

GATE_NOT_MET = 3


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command()
    def train(
        run_file: RunFile,
        overrides: Overrides = None,
        store: StoreOption = "store",
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Only show the plan, which steps are done, and an estimate.")
        ] = False,
        metrics_port: Annotated[
            int | None,
            typer.Option(
                min=1,
                max=65535,
                envvar=metrics_server.PORT_VARIABLE,
                help="During the run, serve its metrics and its steps' on this port, at /metrics.",
            ),
        ] = None,
        gate: Annotated[
            bool, typer.Option("--gate", help="Exit with code 3 if the gain does not meet evaluate.gate.")
        ] = False,
    ) -> None:
        """Execute a run: prepare; per iteration retrieve, judge, mine, finetune, validate; then evaluate.

        You can stop it at any time: the same command resumes it. It skips finished steps.
        """
        run = run_from_file(run_file, overrides, store)
        if dry_run:
            _show_plan(run)
            return
        if all(state.state == "done" for state in run.survey()):
            console.print(f"run {run.spec.name} is finished; nothing to do")
        else:
            with Display(console) as display:
                for note in model_notes(base_folder(run.spec.model.base, run.spec.model.revision), run.spec.model):
                    display.message(f"note: {note}")
                if metrics_port is None:
                    execute(run, display)
                else:
                    _execute_with_metrics(run, display, metrics_port)
        passed = _show_result(run)
        with console.status("waiting for a last scrape of the metrics ..."):
            metrics_server.wait_for_scrape()
        if gate and not passed:
            raise typer.Exit(GATE_NOT_MET)


def _execute_with_metrics(run: Run, display: Display, port: int) -> None:
    metrics = RunMetrics(run.spec.name, run.manifests(), display)
    if not metrics_server.serve(port, metrics.registry):
        raise UserError(f"--metrics-port: port {port} cannot be used; another process may use it. Give another port.")
    try:
        execute(run, metrics, report_metrics=True)
    except PyriteError:
        metrics.end("Failed")
        metrics_server.wait_for_scrape()
        raise
    metrics.end("Succeeded")


def _show_result(run: Run) -> bool:
    """Print the results; the last line is the report's path. Returns whether the gate was met."""
    report = json.loads(run.store.read(f"{run.prefix}/report/report.json"))
    console.print()
    console.print(terminal.results(report))
    console.print(terminal.references(report))
    console.print(report["verdict"], highlight=False)
    console.print(f"model: {run.store}/{run.prefix}/model", soft_wrap=True, highlight=False)
    console.print(str(run.store.fetch(f"{run.prefix}/report/report.html")), soft_wrap=True, highlight=False)
    return bool(report["gate"]["passed"])


def _show_plan(run: Run) -> None:
    table = Table(title=f"plan of run {run.spec.name}", title_justify="left", box=None, pad_edge=False)
    for column in ("step", "state", "takes about"):
        table.add_column(column)
    expected = estimate(run)
    for state in run.survey():
        seconds = expected.seconds.get(state.step, 0.0)
        todo = f"again: {state.stale}" if state.stale else "to do"
        table.add_row(state.step.label, *(("done", "") if state.state == "done" else (todo, f"{seconds:,.0f} s")))
    console.print(table)
    console.print(expected.summary, highlight=False)
    if expected.judging:
        console.print(expected.judging, highlight=False)
