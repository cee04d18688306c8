"""The verbs a person types. Each is thin: it reads options, calls the library, and prints."""

import os
import signal
import sys
import traceback
from pathlib import Path

import typer

from pyrite import __version__
from pyrite.cli import cluster, data, inspect, judging, steps, train
from pyrite.cli.common import errors, interruptible, told_to_stop
from pyrite.cli.cores import keep_to_limit
from pyrite.errors import Interrupted, to_pyrite_error

app = typer.Typer(
    name="pyrite",
    help="Adapt a text-embedding model to one domain: mine hard negatives, judge them, fine-tune, prove the gain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


#: What typer returns for Ctrl-C.
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


for module in (train, data, judging, inspect, cluster, steps):
    module.register(app)


def main() -> None:
    """Entry point.

    Exit code 2: the user can mend it; 1: a failure of ours; 3: the gate was not met, or a probe says no-go; 130:
    Ctrl-C; 143: told to stop by SIGTERM, to be started again.
    """
    code: object = 0
    interruptible()
    keep_to_limit()
    try:
        app()
    except SystemExit as leaving:
        code = leaving.code
        if code == INTERRUPTED:
            errors.print("\nstopped; the same command goes on from here")
            code = Interrupted.exit_code if signal.SIGTERM in told_to_stop else code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if told := to_pyrite_error(error):
            errors.print(f"[bold red]error[/] {_escaped(str(told))}", highlight=False, soft_wrap=True)
            _leave_word(str(told))
            code = told.exit_code
        else:
            traceback.print_exc()
            _leave_word("a fault in Pyrite; the log has the lines to report")
            errors.print("[bold red]error[/] this is a fault in Pyrite; please report it with the lines above")
            code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _leave_word(text: str) -> None:
    """Where a file for it is named, write there why this process ends: Kubernetes shows it with the pod."""
    if path := os.environ.get("PYRITE_TERMINATION_LOG"):
        Path(path).write_text(text[:4000], encoding="utf-8")


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
