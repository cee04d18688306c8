"""pyrite status, report, compare, search: read a run and its results."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pyrite.cli.cluster import Namespace, show_status
from pyrite.cli.common import RunA, RunB, RunName, StoreOption, console, errors, find_run, latest_calibration
from pyrite.errors import UserError
from pyrite.executors.child import FAILED
from pyrite.executors.step import Run
from pyrite.locks import holder
from pyrite.plan import STAGES, StepState
from pyrite.report import terminal


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    panel = "Results"

    @app.command(rich_help_panel=panel)
    def status(
        run: RunName,
        store: StoreOption = "store",
        cluster: Annotated[bool, typer.Option("--cluster", help="The run is on the cluster.")] = False,
        namespace: Namespace = None,
    ) -> None:
        """Show the state of each step, how long it took, and which step is next."""
        if cluster:
            show_status(run, namespace)
        else:
            _status(find_run(run, store))

    @app.command(rich_help_panel=panel)
    def report(run: RunName, store: StoreOption = "store") -> None:
        """Show the result of a finished run. The last line is the path of its HTML report."""
        found = find_run(run, store)
        content = read_report(found)
        for shown in terminal.outcome(content, latest_calibration(found)):
            console.print(shown, highlight=False)
        console.print(str(found.store.fetch(f"{found.prefix}/report/report.html")), soft_wrap=True, highlight=False)

    @app.command(rich_help_panel=panel)
    def compare(run_a: RunA, run_b: RunB, store: StoreOption = "store") -> None:
        """Compare the chosen models of two runs on the same test queries."""
        # Imported here, because scipy takes a second to import.
        from pyrite.report.compare import compare_reports

        a, b = read_report(find_run(run_a, store)), read_report(find_run(run_b, store))
        console.print(terminal.comparison(compare_reports(a, b)))

    @app.command(rich_help_panel=panel)
    def search(
        model: Annotated[
            str, typer.Argument(metavar="MODEL", help="A run, for its chosen model; or a model folder, with --run.")
        ],
        query: Annotated[str, typer.Argument(metavar="QUERY", help="A question in plain language.")],
        store: StoreOption = "store",
        run: Annotated[
            str | None,
            typer.Option("--run", metavar="RUN", help="With a model folder as MODEL: the run to search."),
        ] = None,
        top: Annotated[int, typer.Option("--top", min=1, max=20, help="Number of passages.")] = 5,
    ) -> None:
        """Search a run's passages with its base model and its chosen model, side by side.

        Passages are embedded in context, as in training: title, line break, text (see prepare.context). An index in
        production must embed them in the same form.
        """
        from pyrite.search import search_both

        if not query.strip():
            raise UserError("QUERY is empty. Give a question, such as 'How is gout treated?'.")
        found = _run_to_search(model, run, store)
        _warn_if_outdated(found)
        with console.status("searching"):
            base, other = search_both(found, query, top, model if run else None)
        table = Table(show_lines=True, expand=True)
        table.add_column("", width=2)
        table.add_column(base.model, ratio=1)
        table.add_column(escape(other.model), ratio=1)
        for rank, (left, right) in enumerate(zip(base.hits, other.hits, strict=True), 1):
            table.add_row(str(rank), _render(left), _render(right))
        console.print(table)


def _run_to_search(model: str, run: str | None, store: str) -> Run:
    """The run whose passages are searched: ``run``, or the run that ``model`` names."""
    try:
        return find_run(run or model, store)
    except UserError:
        if run or not Path(model).is_dir():
            raise
        raise UserError(f"{model} is a model folder, not a run. Name the run to search with --run RUN.") from None


def _render(hit: Any) -> str:
    text = hit.text if len(hit.text) <= 220 else hit.text[:217].rsplit(" ", 1)[0] + " ..."
    context = f"[bold]{escape(hit.context)}[/] " if hit.context else ""
    return f"{context}[dim]{hit.score:.3f}[/]\n{escape(text)}"


def read_report(run: Run) -> dict[str, Any]:
    """The report.json of a finished run; prints a warning if it is outdated. Raises UserError if there is none."""
    key = f"{run.prefix}/report/report.json"
    if not run.store.exists(key) or "evaluate" not in run.manifests():
        raise UserError(f"run {run.spec.name} has no report yet; `pyrite status {run.spec.name}` shows its progress.")
    _warn_if_outdated(run)
    content: dict[str, Any] = json.loads(run.store.read(key))
    return content


def _warn_if_outdated(run: Run) -> None:
    """Warn if the run's settings or steps have changed since its result was written."""
    if "evaluate" in run.manifests() and any(state.state != "done" for state in run.survey()):
        name = run.spec.name
        errors.print(
            f"[yellow]warning[/] run {name} has changed since this result was written, and has not finished again: "
            f"`pyrite status {name}` shows its unfinished steps",
            soft_wrap=True,
            highlight=False,
        )


def _status(run: Run) -> None:
    manifests, states = run.manifests(), run.survey()
    table = Table(box=None, pad_edge=False)
    for column in ("step", "state", "took", "result"):
        table.add_column(column, justify="right" if column == "took" else "left", no_wrap=column != "result")
    next_found = False
    for state in states:
        shown, took, result = _status_cells(
            run, state, manifests.get(state.step.name), "to do" if next_found else "next"
        )
        next_found = next_found or state.state != "done"
        table.add_row(state.step.label, shown, took, escape(result))
    console.print(table)
    done = [state.step.name for state in states if state.state == "done"]
    spent = sum(manifests[name]["seconds"] for name in done)
    console.print(f"{len(done)} of {len(states)} steps done in {spent:,.0f} s", highlight=False)


def _status_cells(run: Run, state: StepState, manifest: dict[str, Any] | None, pending: str) -> tuple[str, str, str]:
    """A step's state, duration and result, as shown in the table. ``pending`` is the state of a step not yet run."""
    by = holder(run.lock(state.step.name))
    if state.state == "done" and manifest:
        return "[green]done[/]", f"{manifest['seconds']:.1f} s", STAGES[state.step.stage].headline(manifest["summary"])
    if by:
        return (
            "[cyan]running[/]",
            f"{(datetime.now(UTC) - by.since).total_seconds():.0f} s" if by.since else "",
            by.name,
        )
    if state.state == "ready" and (last := _last_line(run.log(state.step), manifest)):
        if last.startswith(FAILED):
            return "[red]failed[/]", "", last.removeprefix(FAILED)
        return "[red]stopped[/]", "", f"last line of its log: {last}"
    if state.stale:
        return "[yellow]to do again[/]", "", state.stale
    return pending, "", ""


def _last_line(log: Path, manifest: dict[str, Any] | None) -> str:
    """The last line of a step's log; empty if the log is older than the step's manifest."""
    if not log.is_file():
        return ""
    if manifest and log.stat().st_mtime <= datetime.fromisoformat(manifest["finished"]).timestamp() + 1:
        return ""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
