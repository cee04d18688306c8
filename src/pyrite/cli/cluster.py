"""`pyrite submit` and `pyrite attach`: runs on a Kubernetes cluster."""

import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from pyrite.cli.common import Overrides, RunFile, console
from pyrite.cli.display import Display
from pyrite.cli.judging import NO_GO
from pyrite.cli.train import GATE_NOT_MET
from pyrite.config import load
from pyrite.errors import PyriteError
from pyrite.plan import Step

if TYPE_CHECKING:
    from pyrite.controller.client import TrainingRunClient
    from pyrite.controller.resource import TrainingRun

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace; default: that of the kubeconfig's context.")
]
Gate = Annotated[bool, typer.Option("--gate", help="Exit with code 3 if the gain does not meet evaluate.gate.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    panel = "On a cluster"

    @app.command(rich_help_panel=panel)
    def submit(
        run_file: RunFile,
        overrides: Overrides = None,
        namespace: Namespace = None,
        queue: Annotated[str | None, typer.Option("--queue", help="Kueue LocalQueue for the run's Jobs.")] = None,
        until: Annotated[
            Literal["probe"] | None,
            typer.Option("--until", help="Stop after `pyrite probe`: go (exit code 0) or no-go (exit code 3)."),
        ] = None,
        force: Annotated[
            bool, typer.Option("--force", help="Use the judge although it failed `pyrite probe`.")
        ] = False,
        detach: Annotated[bool, typer.Option("--detach", help="Do not follow the run.")] = False,
        gate: Gate = False,
    ) -> None:
        """Submit a run to the cluster and follow it. Ctrl-C detaches; the run continues.

        After `--until probe`, the same command without it continues the run.
        """
        from pyrite.controller.resource import Control

        spec = load(run_file, overrides or ())
        client = _client(namespace)
        created = client.submit(spec, Control(queue=queue, until=until, force=force))
        console.print(f"run {spec.name} is {'submitted to' if created else 'already in'} namespace {client.namespace}")
        if not detach:
            _follow(client, spec.name, namespace, gate)

    @app.command(rich_help_panel=panel)
    def attach(
        run: Annotated[str, typer.Argument(metavar="RUN", help="The run's name.")],
        namespace: Namespace = None,
        gate: Gate = False,
    ) -> None:
        """Follow a run on the cluster until it ends."""
        _follow(_client(namespace), run, namespace, gate)


def _client(namespace: str | None) -> "TrainingRunClient":
    # Imported here, because the Kubernetes client is slow to import.
    from pyrite.controller.client import TrainingRunClient

    return TrainingRunClient(namespace)


def _follow(client: "TrainingRunClient", name: str, namespace: str | None, gate: bool) -> None:
    try:
        with Display(console) as display:
            run = client.follow(name, _StatusDisplay(display).update, _warn_unobserved)
    except KeyboardInterrupt:
        option = f" -n {namespace}" if namespace else ""
        console.print(
            f"\ndetached; the run continues. Follow it with `pyrite attach {name}{option}`, or see its status with "
            f"`pyrite status {name} --cluster{option}`.",
            soft_wrap=True,
            highlight=False,
        )
        raise typer.Exit(0) from None
    _show_result(run)
    if run.status.phase == "Probed" and run.status.probe:
        if run.status.probe.verdict != "go":
            raise typer.Exit(NO_GO)
        return
    if run.status.phase != "Succeeded":
        raise PyriteError(f"run {name} is {run.status.phase.lower()}: {run.status.message}")
    if gate and not run.status.gate_passed:
        raise typer.Exit(GATE_NOT_MET)


class _StatusDisplay:
    """Shows the status of a run on the cluster with the display of local runs."""

    def __init__(self, display: Display):
        self._display = display
        self._step: Step | None = None
        self._step_start = time.monotonic()
        self._done = 0
        self._message = ""

    def update(self, run: "TrainingRun") -> None:
        status = run.status
        step = Step(status.stage, status.iteration) if status.stage else None
        if step != self._step:
            if self._step:
                self._display.passed(self._step, time.monotonic() - self._step_start)
            self._step, self._step_start, self._done = step, time.monotonic(), 0
            if step:
                self._display.started(step)
        if step and status.shards:
            if not self._done and status.shards.total > 1:
                self._display.event(step, {"event": "begin", "total": status.shards.total, "unit": "shards"})
            if status.shards.total > 1 and status.shards.done > self._done:
                self._display.event(step, {"event": "advance", "n": status.shards.done - self._done})
            self._done = max(self._done, status.shards.done)
        degraded = any(c.type == "Degraded" and c.status == "True" for c in status.conditions)
        noteworthy = status.phase in ("Waiting", "Suspended") or (degraded and status.phase != "Failed")
        if noteworthy and status.message != self._message:
            self._display.message(status.message)
        self._message = status.message


def show_status(name: str, namespace: str | None) -> None:
    """Print the status of a run on the cluster."""
    run = _client(namespace).find(name)
    status = run.status
    table = Table(box=None, pad_edge=False, show_header=False)
    rows = [
        ("phase", status.phase),
        ("step", " ".join(filter(None, [status.step, status.progress]))),
        ("message", status.message),
        ("probe", f"{status.probe.verdict}, {status.probe.page_uri}" if status.probe else ""),
        ("MRR@5 (val)", " ".join(filter(None, [status.best, status.best_mrr]))),
        ("cost", status.cost),
        ("job", status.job),
    ]
    for label, text in rows:
        if text:
            table.add_row(label, escape(text))
    console.print(table, highlight=False)
    if run.is_unobserved:
        _warn_unobserved()


def _warn_unobserved() -> None:
    console.print(
        "no controller has observed the run yet. Check that one is running: "
        "`kubectl get pods -l app.kubernetes.io/component=controller`",
        highlight=False,
    )


def _show_result(run: "TrainingRun") -> None:
    """Print the validation scores, the verdict and, in the last line, the address of the report or the probe's page."""
    status = run.status
    if status.scores:
        table = Table(box=None, pad_edge=False)
        table.add_column("model")
        for metric in ("MRR@5", "DCG@5"):
            table.add_column(f"{metric} (val)", justify="right")
        for score in status.scores:
            mark = " *" if score.model == status.best else ""
            table.add_row(f"{score.model}{mark}", f"{score.mrr:.3f}", f"{score.dcg:.3f}")
        console.print()
        console.print(table)
    if status.phase == "Probed" and status.probe:
        console.print(escape(status.message), highlight=False)
        console.print(status.probe.page_uri, soft_wrap=True, highlight=False)
    if status.phase == "Succeeded":
        console.print(escape(status.message), highlight=False)
        for label, address in (("model", status.model_uri), ("report", status.report_uri)):
            console.print(f"{label}: {address}", soft_wrap=True, highlight=False)
