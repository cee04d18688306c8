"""One command per stage, which runs one step of a run. Pods run the same commands."""

from collections.abc import Callable
from contextlib import nullcontext
from inspect import Parameter, Signature, signature
from typing import Annotated

import typer

from pyrite import metrics_server
from pyrite.cli.common import Overrides, RunFile, StoreOption, console, run_from_file
from pyrite.cli.display import Display
from pyrite.executors.step import Run, run_step
from pyrite.locks import locked
from pyrite.plan import STAGES, StageInfo, Step
from pyrite.progress import ProgressEvents

Shard = Annotated[int, typer.Option("--shard", min=0, help="Which shard, from 0.")]
Force = Annotated[bool, typer.Option("--force", help="Run it even if it is finished.")]


def register(app: typer.Typer) -> None:
    """Add a command to ``app`` for every stage in ``STAGES``."""
    for stage, info in STAGES.items():
        app.command(stage, help=info.help, rich_help_panel="One step of a run")(_command(stage, info))


def _command(stage: str, info: StageInfo) -> Callable[..., None]:
    """The function of a stage's command. Typer reads the options from its signature."""

    def command(
        run_file: RunFile,
        overrides: Overrides = None,
        *,
        store: StoreOption = "store",
        force: Force = False,
        **place: int,
    ) -> None:
        metrics_server.serve_from_env()
        with metrics_server.scraped_at_end() if info.awaits_scrape else nullcontext():
            _run(run_from_file(run_file, overrides, store, stage), Step(stage, **place), force)

    place = []
    if info.first_iteration is not None:
        which = "Which iteration, from 1." if info.first_iteration else "Which iteration; 0 is the base model."
        option = typer.Option("--iteration", "-i", min=info.first_iteration, help=which)
        place.append(Parameter("iteration", Parameter.KEYWORD_ONLY, annotation=Annotated[int, option]))
    if info.shards:
        place.append(Parameter("shard", Parameter.KEYWORD_ONLY, annotation=Shard))
    run_file, overrides, store, force, _ = signature(command).parameters.values()
    command.__signature__ = Signature([run_file, overrides, *place, store, force])  # type: ignore[attr-defined]
    return command


def _run(run: Run, step: Step, force: bool) -> None:
    """Run ``step`` under a shared lock of the run, showing its progress."""
    run.store.ensure_writable()
    with locked(run.lock("run"), f"run {run.spec.name}", shared=True), Display(console) as display:
        run.save_spec()
        display.started(step)
        manifest = run_step(run, step, ProgressEvents(lambda event: display.event(step, event)), force=force)
        display.finished(step, manifest)
