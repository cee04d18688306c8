"""pyrite probe, calibrate: the verbs that check a judge."""

import json
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
from pyrite.plan import PROBE, Step
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

        With too few pairs to tell, the exit code is 3, too.

        The last line of the output is the path of a page with judgments to read.
        """
        from pyrite.estimate.probes import probe_folder
        from pyrite.judge_eval.common import check_judge, check_server
        from pyrite.judge_eval.probe import probe as run_probe
        from pyrite.report import terminal
        from pyrite.report.pages import probe_page

        run = run_from_file(run_file, overrides, store)
        check_judge(run.spec.main_judge)
        with _shared_lock(run) as display:
            check_server(run.spec, display.message)
            _prepare(run, display)
            content = run_probe(run, queries, candidates, _progress(display, PROBE))
        folder = probe_folder(run)
        for place in (folder, f"{run.prefix}/probe"):  # the second is always the latest probe
            run.store.write(f"{place}/probe.html", probe_page(content).encode())
            run.store.write(f"{place}/probe.json", _json(content))
        for shown in terminal.probe(content):
            console.print(shown, highlight=False)
        console.print(str(run.store.fetch(f"{folder}/probe.html")), soft_wrap=True, highlight=False)
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
        compare_prompt: Annotated[
            str | None,
            typer.Option(
                "--compare-prompt",
                metavar="PROMPT",
                help="Also grade with this prompt, such as general-yes-no, and report which one is better.",
            ),
        ] = None,
        robustness: Annotated[
            bool,
            typer.Option("--robustness", help="Also grade altered passages and prompts: what misleads the judge?"),
        ] = False,
        robustness_pairs: Annotated[
            int, typer.Option("--robustness-pairs", min=2, help="Maximum number of pairs for --robustness.")
        ] = 100,
        store: StoreOption = "store",
    ) -> None:
        """Measure the judge's agreement with human grades.

        The last line of the output is the path of a JSON file with all numbers.
        """
        from pyrite.judge_eval.calibration import calibrate as run_calibration
        from pyrite.judge_eval.calibration import calibration_key, graded_ids, graded_texts, prepared_tables
        from pyrite.judge_eval.common import check_judge
        from pyrite.judge_eval.human_grades import read_graded, scale_of
        from pyrite.judge_eval.prompt_comparison import compare_prompts, with_prompt
        from pyrite.judge_eval.robustness import prepare_robustness
        from pyrite.report import terminal

        file = read_graded(graded_file)
        found = scale_of(graded_file, file.rows, scale)
        run = run_from_file(run_file, overrides, store)
        judge = run.spec.main_judge
        check_judge(judge)
        if file.has_texts and not judge.spec.reads_text:
            raise UserError(
                f"{graded_file} contains texts, but {judge.section}.kind {judge.spec.kind} grades only passages of the "
                f"run. Use {judge.section}.kind=llm, or TREC qrels with ids of the run."
            )
        if robustness and not judge.spec.reads_text:
            raise UserError(
                f"--robustness: {judge.section}.kind {judge.spec.kind} reads no texts. Use {judge.section}.kind=llm."
            )
        other = with_prompt(judge, compare_prompt) if compare_prompt else None
        with _shared_lock(run) as display:
            if file.has_texts:
                graded = graded_texts(file, found)
            else:
                _prepare(run, display)
                graded = graded_ids(file, found, prepared_tables(run))
            progress = _progress(display, Step("calibrate"))
            content = {"file": str(graded_file), **run_calibration(run, graded, progress)}
            key = calibration_key(run, graded_file.name, content["judge"])
            run.store.write(key, _json(content))
            if other or robustness:
                display.message(f"agreement stored in {run.store}/{key}; more tests follow")
            if other:
                content["comparison"] = compare_prompts(run, other, graded, progress)
            if robustness:
                test = prepare_robustness(run, graded, robustness_pairs)
                display.message(test.description)
                content["robustness"] = test.measure(progress)
            run.store.write(key, _json(content))
        for shown in terminal.calibration(content, f"{judge.section}.calibration"):
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
