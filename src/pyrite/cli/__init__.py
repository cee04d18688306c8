"""The command line. A command reads its options, calls the library, and prints the result."""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from pyrite import __version__
from pyrite.cli import cluster, data, doctor, estimating, exporting, grade, inspect, judging, registry, steps, train
from pyrite.cli.common import errors, handle_stop_signals, stop_signals
from pyrite.cli.cores import limit_threads
from pyrite.errors import Interrupted, plain_message, to_pyrite_error


class _Commands(TyperGroup):
    """The commands; errors of their options are without pydantic's terms."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if text := plain_message(error.message):
                error.message = f"{text.rstrip('.')}."
            raise


app = typer.Typer(
    name="pyrite",
    cls=_Commands,
    help="Adapt a text-embedding model to one domain: mine hard negatives, judge them, fine-tune, prove the gain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

#: Typer's exit code after Ctrl-C.
INTERRUPTED = 130


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pyrite {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    del version


for module in (train, doctor, data, estimating, judging, inspect, grade, exporting, registry, cluster, steps):
    module.register(app)


def main() -> None:
    """Entry point.

    Exit codes: 1, Pyrite or a server failed; 2, the user can fix the error; 3, the gate was not met, or a probe
    advises against the judge; 130, Ctrl-C; 143, SIGTERM: the same command resumes the run.
    """
    code: object = 0
    handle_stop_signals()
    limit_threads()
    try:
        app()
    except SystemExit as end:
        code = end.code
        if code == INTERRUPTED:
            errors.print("\nstopped; the same command resumes a run. Other commands start again.")
            code = Interrupted.exit_code if signal.SIGTERM in stop_signals else code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if known := to_pyrite_error(error):
            errors.print(f"[bold red]error[/] {escape(str(known))}", highlight=False, soft_wrap=True)
            _write_termination_message(str(known))
            code = known.exit_code
        else:
            traceback.print_exc()
            _write_termination_message("a bug in Pyrite; please report it with the traceback in the log")
            errors.print("[bold red]error[/] this is a bug in Pyrite; please report it with the traceback above")
            code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _write_termination_message(text: str) -> None:
    """Write the reason for the end to the file PYRITE_TERMINATION_LOG, if set. Kubernetes shows it with the pod."""
    if path := os.environ.get("PYRITE_TERMINATION_LOG"):
        Path(path).write_text(text[:4000], encoding="utf-8")
