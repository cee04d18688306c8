"""One verb per stage: run one step of a run by hand. Pods run the same verbs."""

from collections.abc import Callable
from contextlib import nullcontext
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from pyrite import metrics_server
from pyrite.cli.common import Overrides, RunFile, StoreOption, console, run_from_file
from pyrite.cli.display import Display
from pyrite.config import dump
from pyrite.executors.step import Run, run_step
from pyrite.locks import locked
from pyrite.plan import STAGES, StageInfo, Step
from pyrite.progress import ProgressEvents
from pyrite.store import ObjectCorrupted, ObjectNotFound

Shard = Annotated[int, typer.Option("--shard", min=0, help="Which shard, from 0.")]
Force = Annotated[bool, typer.Option("--force", help="Run it even if it is finished.")]


def register(app: typer.Typer) -> None:
    """Add a verb to ``app`` for every stage in ``STAGES``."""
    for stage, info in STAGES.items():
        app.command(stage, help=info.help, rich_help_panel="One step of a run")(_command(stage, info))


def _command(stage: str, info: StageInfo) -> Callable[..., None]:
    """The function of a stage's verb. Typer reads the verb's options from its signature."""

    def command(
        run_file: Path,
        overrides: list[str] | None,
        store: str,
        force: bool,
        iteration: int | None = None,
        shard: int | None = None,
    ) -> None:
        metrics_server.serve_from_env()
        with metrics_server.scraped_at_end() if info.awaits_scrape else nullcontext():
            _run(run_from_file(run_file, overrides, store, stage), Step(stage, iteration, shard), force)

    options: dict[str, Any] = {"run_file": RunFile, "overrides": Overrides}
    if info.first_iteration is not None:
        which = "Which iteration, from 1." if info.first_iteration else "Which iteration; 0 is the base model."
        options["iteration"] = Annotated[int, typer.Option("--iteration", "-i", min=info.first_iteration, help=which)]
    if info.shards:
        options["shard"] = Shard
    options |= {"store": StoreOption, "force": Force}
    defaults = {"overrides": None, "store": "store", "force": False}
    command.__annotations__ = options
    command.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(name, Parameter.KEYWORD_ONLY, default=defaults.get(name, Parameter.empty), annotation=annotation)
            for name, annotation in options.items()
        ]
    )
    return command


def _run(run: Run, step: Step, force: bool) -> None:
    """Run ``step`` under a shared lock of the run, showing its progress."""
    run.store.ensure_writable()
    with locked(run.lock("run"), f"run {run.spec.name}", shared=True), Display(console) as display:
        key, description = f"{run.prefix}/run.yaml", dump(run.spec).encode()
        try:
            stored = run.store.read(key)
        except (ObjectNotFound, ObjectCorrupted):
            stored = b""
        if stored != description:
            run.store.write(key, description)
        display.started(step)
        manifest = run_step(run, step, ProgressEvents(lambda event: display.event(step, event)), force=force)
        display.finished(step, manifest)
