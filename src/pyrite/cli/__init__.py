"""The verbs a person types. Each is thin: it reads options, calls the library, and prints."""

import os
import sys
import traceback

import typer

from pyrite import __version__
from pyrite.cli import data, inspect, judging, steps, train
from pyrite.cli.common import errors
from pyrite.errors import PyriteError

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


for module in (train, data, judging, inspect, steps):
    module.register(app)


def main() -> None:
    """Entry point.

    Exit code 2: the user can mend it; 1: a failure of ours; 3: the gate was not met, or a probe says no-go; 130:
    Ctrl-C; 143: told to stop by SIGTERM, to be started again.
    """
    code: object = 0
    try:
        app()
    except SystemExit as leaving:
        code = leaving.code
        if code == INTERRUPTED:
            errors.print("\nstopped; the same command goes on from here")
    except PyriteError as error:
        errors.print(f"[bold red]error[/] {_escaped(str(error))}", highlight=False, soft_wrap=True)
        code = error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception:
        traceback.print_exc()
        errors.print("[bold red]error[/] this is a fault in Pyrite; please report it with the lines above")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
