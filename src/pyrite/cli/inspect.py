"""pyrite status, report, compare, search: looking at runs."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pyrite.cli.cluster import Namespace, show_status
from pyrite.cli.common import RunA, RunB, RunName, StoreOption, console, errors, find_run
from pyrite.cli.display import headline
from pyrite.errors import UserError
from pyrite.executors.local import FAILED
from pyrite.executors.step import Run
from pyrite.locks import holder
from pyrite.report import terminal


def register(app: typer.Typer) -> None:
    """Add the verbs to ``app``."""
    panel = "Looking at runs"

    @app.command(rich_help_panel=panel)
    def status(
        run: RunName,
        store: StoreOption = "store",
        cluster: Annotated[bool, typer.Option("--cluster", help="Ask the cluster, which does the run.")] = False,
        namespace: Namespace = None,
    ) -> None:
        """Which steps are finished, running or failed, how long they took, and what is next."""
        if cluster:
            show_status(run, namespace)
        else:
            _status(find_run(run, store))

    @app.command(rich_help_panel=panel)
    def report(run: RunName, store: StoreOption = "store") -> None:
        """The result of a finished run: table, verdict and, as the last line, the path of its page."""
        found = find_run(run, store)
        content = _report(found)
        console.print(terminal.results(content))
        console.print(content["verdict"], highlight=False)
        console.print(str(found.store.fetch(f"{found.prefix}/report/report.html")), soft_wrap=True, highlight=False)

    @app.command(rich_help_panel=panel)
    def compare(run_a: RunA, run_b: RunB, store: StoreOption = "store") -> None:
        """The chosen models of two runs side by side on the same test queries."""
        # Here, so that other verbs do not wait a second for scipy.
        from pyrite.report.compare import compare_reports

        a, b = _report(find_run(run_a, store)), _report(find_run(run_b, store))
        console.print(terminal.comparison(compare_reports(a, b)))

    @app.command(rich_help_panel=panel)
    def search(
        model: Annotated[
            str, typer.Argument(metavar="MODEL", help="A run, for the model it chose; or a model folder, with --run.")
        ],
        question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to look for, in plain words.")],
        store: StoreOption = "store",
        run: Annotated[
            str | None,
            typer.Option("--run", metavar="RUN", help="MODEL is a model folder: search this run's passages."),
        ] = None,
        top: Annotated[int, typer.Option("--top", min=1, max=20, help="How many passages.")] = 5,
    ) -> None:
        """Ask a run's base model and the one it chose the same question, and see what each finds first."""
        from pyrite.search import search_both

        if not question.strip():
            raise UserError("the question is empty")
        found = _whose(model, run, store)
        _warn_if_outdated(found)
        with console.status("searching"):
            base, other = search_both(found, question, top, model if run else None)
        table = Table(show_lines=True, expand=True)
        table.add_column("", width=2)
        table.add_column(base.model, ratio=1)
        table.add_column(escape(other.model), ratio=1)
        for rank, (left, right) in enumerate(zip(base.hits, other.hits, strict=True), 1):
            table.add_row(str(rank), _passage(left), _passage(right))
        console.print(table)


def _whose(model: str, run: str | None, store: str) -> Run:
    """The run whose passages are searched: ``run``, or the one that ``model`` names."""
    try:
        return find_run(run or model, store)
    except UserError:
        if run or not Path(model).is_dir():
            raise
        raise UserError(f"{model} is a folder: say with --run RUN whose passages to search with the model.") from None


def _passage(hit: Any) -> str:
    text = hit.text if len(hit.text) <= 220 else hit.text[:217].rsplit(" ", 1)[0] + " ..."
    title = f"[bold]{escape(hit.title)}[/] " if hit.title else ""
    return f"{title}[dim]{hit.score:.3f}[/]\n{escape(text)}"


def _report(run: Run) -> dict[str, Any]:
    key = f"{run.prefix}/report/report.json"
    if not run.store.exists(key) or "evaluate" not in run.manifests():
        raise UserError(f"run {run.spec.name} has no report yet; `pyrite status {run.spec.name}` says how far it is.")
    _warn_if_outdated(run)
    content: dict[str, Any] = json.loads(run.store.read(key))
    return content


def _warn_if_outdated(run: Run) -> None:
    """A result that the run's settings or steps have left behind is shown, but never as if it were today's."""
    if "evaluate" in run.manifests() and any(state.state != "done" for state in run.survey()):
        name = run.spec.name
        errors.print(
            f"[yellow]warning[/] run {name} has changed since this was made, and is not finished anew: "
            f"`pyrite status {name}` says what is to do",
            soft_wrap=True,
            highlight=False,
        )


def _status(run: Run) -> None:
    manifests, states = run.manifests(), run.survey()
    table = Table(box=None, pad_edge=False)
    for column in ("step", "state", "took", "result"):
        table.add_column(column, justify="right" if column == "took" else "left", no_wrap=column != "result")
    following = False
    for state in states:
        manifest = manifests.get(state.step.name)
        took = result = ""
        by = holder(run.lock(state.step.name))
        log = run.store.local_path(f"{run.prefix}/logs/{state.step.name}.log")
        if state.state == "done" and manifest:
            words, took, result = (
                "[green]done[/]",
                f"{manifest['seconds']:.1f} s",
                headline(state.step.stage, manifest["summary"]),
            )
        elif by:
            words, result = "[cyan]running[/]", by.name
            took = f"{(datetime.now(UTC) - by.since).total_seconds():.0f} s" if by.since else ""
        elif state.state == "ready" and (last := _last_line(log, manifest)):
            failed = last.startswith(FAILED)
            words = "[red]failed[/]" if failed else "[red]stopped[/]"
            result = last.removeprefix(FAILED) if failed else f"last line of its log: {last}"
        elif state.stale:
            words, result = "[yellow]to do again[/]", state.stale
        else:
            words = "to do" if following else "next"
        following = following or state.state != "done"
        table.add_row(state.step.label, words, took, escape(result))
    console.print(table)
    done = sum(state.state == "done" for state in states)
    spent = sum(manifests[state.step.name]["seconds"] for state in states if state.state == "done")
    console.print(f"{done} of {len(states)} steps done in {spent:,.0f} s", highlight=False)


def _last_line(log: Path, manifest: dict[str, Any] | None) -> str:
    """The last line of a step's log, or nothing where it is of the time before the step was last finished."""
    if not log.is_file():
        return ""
    if manifest and log.stat().st_mtime <= datetime.fromisoformat(manifest["finished"]).timestamp() + 1:
        return ""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
