"""pyrite probe, calibrate: the verbs that check a judge."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pyrite.cli.common import Overrides, RunFile, StoreOption, console, run_from_file
from pyrite.cli.display import Display
from pyrite.config import dump
from pyrite.errors import UserError
from pyrite.executors.step import Run, run_step
from pyrite.judge_eval.human_grades import Scale
from pyrite.locks import locked
from pyrite.plan import Step
from pyrite.progress import Progress, ProgressEvents

NO_GO = 3


def register(app: typer.Typer) -> None:
    """Add the verbs to ``app``."""
    panel = "Choosing a judge"

    @app.command(rich_help_panel=panel)
    def probe(
        run_file: RunFile,
        overrides: Overrides = None,
        queries: Annotated[int, typer.Option("--queries", min=2, help="Number of training queries.")] = 30,
        candidates: Annotated[int, typer.Option("--candidates", min=2, help="Passages per query, by rank.")] = 10,
        store: StoreOption = "store",
    ) -> None:
        """Judge a sample of pairs to check the judge before a run: go (exit code 0) or no-go (exit code 3).

        The last line of the output is the path of a page with judgments to read.
        """
        from transformers.utils.logging import disable_progress_bar

        from pyrite.judge_eval.probe import probe as run_probe
        from pyrite.report import terminal
        from pyrite.report.pages import probe_page

        disable_progress_bar()  # Pyrite has its own
        run = run_from_file(run_file, overrides, store)
        with _shared_lock(run) as display:
            _prepare(run, display)
            content = run_probe(run, queries, candidates, _progress(display, Step("probe")))
        page = f"{run.prefix}/probe/probe.html"
        run.store.write(page, probe_page(content).encode())
        run.store.write(f"{run.prefix}/probe/probe.json", _json(content))
        for shown in terminal.probe(content):
            console.print(shown, highlight=False)
        console.print(str(run.store.fetch(page)), soft_wrap=True, highlight=False)
        if not content["go"]:
            raise typer.Exit(NO_GO)

    @app.command(rich_help_panel=panel)
    def calibrate(
        run_file: RunFile,
        graded_file: Annotated[
            Path,
            typer.Argument(
                metavar="GRADED_FILE",
                help="TREC qrels with ids of the run or its source, or CSV, TSV or JSONL: query, passage, grade.",
            ),
        ],
        overrides: Overrides = None,
        scale: Annotated[
            Scale | None, typer.Option("--scale", help="Scale of the grades; needed if they fit two scales.")
        ] = None,
        store: StoreOption = "store",
    ) -> None:
        """Measure the judge's agreement with human grades.

        The last line of the output is the path of a JSON file with all numbers.
        """
        from pyrite.judge_eval.calibration import calibrate as run_calibration
        from pyrite.judge_eval.calibration import graded_ids, graded_texts, prepared_tables
        from pyrite.judge_eval.human_grades import read_graded, scale_of
        from pyrite.report import terminal

        file = read_graded(graded_file)
        found = scale_of(graded_file, file.rows, scale)
        run = run_from_file(run_file, overrides, store)
        if file.has_texts and not run.spec.judge.reads_text:
            raise UserError(
                f"{graded_file} contains texts, but judge.kind {run.spec.judge.kind} grades only passages of the run. "
                "Use judge.kind=llm, or TREC qrels with ids of the run."
            )
        with _shared_lock(run) as display:
            if file.has_texts:
                graded = graded_texts(file, found)
            else:
                _prepare(run, display)
                graded = graded_ids(file, found, prepared_tables(run))
            content = run_calibration(run, graded, _progress(display, Step("calibrate")))
        key = f"{run.prefix}/calibration/{re.sub(r'[^A-Za-z0-9._-]+', '-', graded_file.name)}.json"
        run.store.write(key, _json({"file": str(graded_file), **content}))
        for shown in terminal.calibration(content):
            console.print(shown, highlight=False)
        console.print(str(run.store.fetch(key)), soft_wrap=True, highlight=False)


@contextmanager
def _shared_lock(run: Run) -> Iterator[Display]:
    """Hold the run's lock, shared with its steps. Raises UserError if the store is read-only or `pyrite train` runs."""
    run.store.ensure_writable()
    with locked(run.lock("run"), f"run {run.spec.name}", shared=True), Display(console) as display:
        yield display


def _prepare(run: Run, display: Display) -> None:
    from pyrite.judge_eval.common import missing_steps

    key = f"{run.prefix}/run.yaml"
    for step in missing_steps(run):
        if not run.store.exists(key):
            run.store.write(key, dump(run.spec).encode())
        display.finished(step, run_step(run, step, _progress(display, step)))


def _progress(display: Display, step: Step) -> Progress:
    display.started(step)
    return ProgressEvents(lambda event: display.event(step, event))


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode()
