"""One verb a stage: a step of a run by hand, as the executors do it."""

from contextlib import nullcontext
from typing import Annotated

import typer

from pyrite import metrics_server
from pyrite.cli.common import Overrides, RunFile, StoreOption, console, run_from_file
from pyrite.cli.display import Display
from pyrite.config import dump
from pyrite.executors.step import Run, run_step
from pyrite.locks import locked
from pyrite.plan import STAGES, Step
from pyrite.progress import ProgressEvents
from pyrite.store import ObjectCorrupted, ObjectNotFound

Iteration = Annotated[int, typer.Option("--iteration", "-i", min=1, help="Which iteration, from 1.")]
#: Stages whose metrics are worth a last scrape; what the others come to is all in their manifests.
_LONG = ("generate", "retrieve", "judge", "finetune")

Force = Annotated[bool, typer.Option("--force", help="Do it again even where it is finished.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to ``app``."""
    panel = "One step of a run"

    @app.command(rich_help_panel=panel)
    def prepare(
        run_file: RunFile, overrides: Overrides = None, store: StoreOption = "store", force: Force = False
    ) -> None:
        """Documents to passages, questions to splits by topic."""
        _do(run_file, overrides, store, force, Step("prepare"))

    @app.command(rich_help_panel=panel)
    def generate(
        run_file: RunFile,
        shard: Annotated[int, typer.Option("--shard", min=0, help="Which shard, from 0.")],
        overrides: Overrides = None,
        store: StoreOption = "store",
        force: Force = False,
    ) -> None:
        """Have an LLM make one shard of the questions, where the run file says so (generate)."""
        _do(run_file, overrides, store, force, Step("generate", None, shard))

    @app.command(rich_help_panel=panel)
    def retrieve(
        run_file: RunFile,
        iteration: Iteration,
        overrides: Overrides = None,
        store: StoreOption = "store",
        force: Force = False,
    ) -> None:
        """Rank the training passages for every training query with the model as it is."""
        _do(run_file, overrides, store, force, Step("retrieve", iteration))

    @app.command(rich_help_panel=panel)
    def judge(
        run_file: RunFile,
        iteration: Iteration,
        shard: Annotated[int, typer.Option("--shard", min=0, help="Which shard, from 0.")],
        overrides: Overrides = None,
        store: StoreOption = "store",
        force: Force = False,
    ) -> None:
        """Grade one shard of an iteration's (query, passage) pairs."""
        _do(run_file, overrides, store, force, Step("judge", iteration, shard))

    @app.command(rich_help_panel=panel)
    def mine(
        run_file: RunFile,
        iteration: Iteration,
        overrides: Overrides = None,
        store: StoreOption = "store",
        force: Force = False,
    ) -> None:
        """Turn disagreements between grade and rank into training examples."""
        _do(run_file, overrides, store, force, Step("mine", iteration))

    @app.command(rich_help_panel=panel)
    def finetune(
        run_file: RunFile,
        iteration: Iteration,
        overrides: Overrides = None,
        store: StoreOption = "store",
        force: Force = False,
    ) -> None:
        """Train the model on the examples."""
        _do(run_file, overrides, store, force, Step("finetune", iteration))

    @app.command(rich_help_panel=panel)
    def evaluate(
        run_file: RunFile,
        overrides: Overrides = None,
        iteration: Annotated[
            int | None,
            typer.Option("--iteration", "-i", min=0, help="Score this iteration on validation; 0 is the base model."),
        ] = None,
        store: StoreOption = "store",
        force: Force = False,
    ) -> None:
        """Score an iteration on validation; without --iteration, choose, score once on test, write the report."""
        step = Step("evaluate") if iteration is None else Step("validate", iteration)
        _do(run_file, overrides, store, force, step)


def _do(run_file: RunFile, overrides: Overrides, store: str, force: bool, step: Step) -> None:
    assert step.stage in STAGES
    metrics_server.serve_from_env()
    with metrics_server.scraped_at_end() if step.stage in _LONG else nullcontext():
        _do_now(run_from_file(run_file, overrides, store, step.stage), force, step)


def _do_now(run: Run, force: bool, step: Step) -> None:
    run.store.ensure_writable()
    with locked(run.lock("run"), f"run {run.spec.name}", shared=True), Display(console) as display:
        key, description = f"{run.prefix}/run.yaml", dump(run.spec).encode()
        try:
            stands = run.store.read(key)
        except (ObjectNotFound, ObjectCorrupted):
            stands = b""
        if stands != description:
            run.store.write(key, description)
        display.started(step)
        manifest = run_step(run, step, ProgressEvents(lambda event: display.event(step, event)), force=force)
        display.finished(step, manifest)
