"""pyrite grade: people grade pairs of a finished run, and the run's gain is corrected by their grades."""

import json
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from pyrite.cli.common import RunName, StoreOption, console, find_run
from pyrite.cli.inspect import read_report
from pyrite.errors import UserError
from pyrite.executors.step import Run
from pyrite.locks import locked

if TYPE_CHECKING:
    from pyrite.people.grades import GradeFile
    from pyrite.people.task import Task


#: Number of pairs to grade, unless it is set.
_PAIRS = 100


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command(rich_help_panel="Results")
    def grade(
        run: RunName,
        pairs: Annotated[
            int | None,
            typer.Option(
                "--pairs", min=20, help="Number of pairs to grade. Default: as in the last call, at first 100."
            ),
        ] = None,
        port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the page; 0 is a free one.")] = 0,
        show: Annotated[bool, typer.Option("--show", help="Only print the result of the grades so far.")] = False,
        store: StoreOption = "store",
    ) -> None:
        """Grade a sample of test pairs on a local web page, and correct the run's gain in DCG@5 by the grades.

        Each grade is stored at once. Ctrl-C ends the page and prints the result of the grades so far; the same command
        resumes it.
        """
        from pyrite.people.grades import GradeFile
        from pyrite.people.task import open_task, result
        from pyrite.report import terminal

        found = find_run(run, store)
        key = f"{found.prefix}/people/task.json"
        if pairs is None:
            pairs = json.loads(found.store.read(key))["pairs"] if found.store.exists(key) else _PAIRS
        task = open_task(found, read_report(found), pairs)
        file = GradeFile(found.store, f"{found.prefix}/people/grades.qrels")
        if not show:
            found.store.ensure_writable()
            with locked(found.lock("grade"), f"grading of run {found.spec.name}"):
                found.store.write(key, json.dumps({"pairs": pairs}).encode())
                _serve(found, task, file, port)
        content = result(task, file.read())
        graded = content["pairs"]["graded"]
        if show and not graded:
            raise UserError(f"no pair is graded yet. Run `pyrite grade {found.spec.name}` without --show.")
        console.print(f"{graded} of {len(task.order)} pairs graded: {file}", soft_wrap=True, highlight=False)
        if not show:
            data = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode()
            found.store.write(f"{found.prefix}/people/result.json", data)
        for shown in terminal.people(content):
            console.print(shown, highlight=False)


def _serve(run: Run, task: "Task", file: "GradeFile", port: int) -> None:
    """Serve the page until the person ends it, or until Ctrl-C. Returns at once if all pairs are graded."""
    from pyrite.people.server import GradingServer
    from pyrite.report.pages import grade_page

    stored = file.read()
    grades = [stored.get(task.key(position)) for position in range(len(task.order))]
    if None not in grades:
        return
    name = run.spec.name
    with GradingServer(
        task.items,
        grades,
        lambda position, grade: file.add(task.key(position), grade),
        lambda nonce: grade_page(name, nonce),
        port,
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        console.print(f"Open {server.url} in a browser on this machine.", soft_wrap=True, highlight=False)
        console.print("Keys: 1 to 4 grade, left arrow goes back. Ctrl-C ends; grades are stored.", highlight=False)
        try:
            server.finished.wait()
        except KeyboardInterrupt:
            console.print()
        server.shutdown()
