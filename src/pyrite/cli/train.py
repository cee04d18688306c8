"""pyrite train: a complete run on this machine."""

import json
from typing import Annotated

import typer
from rich.table import Table

from pyrite import metrics_server
from pyrite.cli.common import Overrides, RunFile, StoreOption, console, latest_calibration, run_from_file, show_no_go
from pyrite.cli.display import Display
from pyrite.cli.estimating import show_stages, timed_estimate
from pyrite.costs import DEFAULT_MACHINE, machine
from pyrite.embedding.checks import model_notes
from pyrite.embedding.models import base_folder
from pyrite.errors import PyriteError, UserError
from pyrite.estimate.probes import probe_failure, probe_folder, probed
from pyrite.executors.local import execute
from pyrite.executors.run_metrics import RunMetrics
from pyrite.executors.step import Run
from pyrite.judges.evaluator import family_notes
from pyrite.plan import no_go
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
        force: Annotated[
            bool, typer.Option("--force", help="Use the judge although it failed `pyrite probe`.")
        ] = False,
    ) -> None:
        """Execute a run: prepare; per iteration retrieve, judge, mine, finetune, embed, validate; then evaluate.

        You can stop it at any time: the same command resumes it. It skips finished steps.
        """
        run = run_from_file(run_file, overrides, store)
        if dry_run:
            _show_plan(run)
            return
        if all(state.state == "done" for state in run.survey()):
            console.print(f"run {run.spec.name} is finished; nothing to do")
        else:
            notes = _check_probe(run, force)
            with Display(console) as display:
                for note in notes:
                    display.message(f"note: {note}")
                base = base_folder(run.spec.model.base, run.spec.model.revision)
                for note in [*model_notes(base, run.spec.model), *family_notes(run.spec)]:
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


def _check_probe(run: Run, force: bool) -> list[str]:
    """Notes on the probe of a judge that costs money, if pairs are left to judge.

    Raises:
        UserError: the judge failed the probe, and ``force`` is not set.
    """
    to_judge = any(state.step.stage == "judge" and state.state != "done" for state in run.survey())
    if not (run.spec.judge.needs_server and to_judge):
        return []
    probe = probed(run)
    if probe and probe["go"] is None:
        return ["the probe of this judge had too few pairs to tell; use more queries (`pyrite probe --queries`)"]
    if probe is None:
        return ["this judge is not probed; `pyrite probe` checks it in minutes"]
    failed = probe_failure(probe)
    if failed is None:
        return []
    if force:
        return [failed]
    raise UserError(no_go(failed, f"{run.store}/{probe_folder(run)}/probe.html", "use --force"))


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
    for shown in terminal.outcome(report, latest_calibration(run)):
        console.print(shown, highlight=False)
    console.print(f"model: {run.store}/{run.prefix}/model", soft_wrap=True, highlight=False)
    console.print(str(run.store.fetch(f"{run.prefix}/report/report.html")), soft_wrap=True, highlight=False)
    return bool(report["gate"]["passed"])


def _show_plan(run: Run) -> None:
    table = Table(title=f"plan of run {run.spec.name}", title_justify="left", box=None, pad_edge=False)
    for column in ("step", "state", "takes about"):
        table.add_column(column)
    on = machine(DEFAULT_MACHINE)
    expected = timed_estimate(run, on)
    for state in run.survey():
        seconds = expected.seconds.get(state.step, 0.0)
        todo = f"again: {state.stale}" if state.stale else "to do"
        table.add_row(state.step.label, *(("done", "") if state.state == "done" else (todo, f"{seconds:,.0f} s")))
    console.print(table)
    console.print(expected.summary, highlight=False, markup=False)
    show_stages(expected, on, 1)
    for text in filter(None, (expected.judging, expected.assessing)):
        console.print(text, highlight=False, markup=False)
    show_no_go(run)
