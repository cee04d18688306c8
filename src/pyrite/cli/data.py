"""pyrite init, check, fetch: commands before a run."""

import shlex
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from pyrite.cli.common import Overrides, RunFile, console
from pyrite.cli.display import Display
from pyrite.config import load
from pyrite.embedding.checks import model_notes
from pyrite.embedding.models import base_folder
from pyrite.errors import UserError
from pyrite.judges.evaluator import family_notes
from pyrite.plan import Step
from pyrite.progress import ProgressEvents
from pyrite.report.formatting import plural


class Kind(StrEnum):
    """Kinds of source with an example run file."""

    SAMPLE = "sample"
    MEDQUAD = "medquad"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    BEIR = "beir"
    STACKEXCHANGE = "stackexchange"
    HUGGINGFACE = "huggingface"
    DOCUMENTS = "documents"


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    panel = "Before a run"

    @app.command(rich_help_panel=panel)
    def init(
        kind: Annotated[Kind, typer.Argument(metavar="KIND", help=f"The kind of source: {', '.join(Kind)}.")],
        path: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path("run.yaml"),
    ) -> None:
        """Write a commented run file as a starting point."""
        text = resources.files("pyrite").joinpath(f"examples/{kind.value}.yaml").read_text(encoding="utf-8")
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise UserError(
                f"{path} already exists and was not changed. Give another name, or remove it first."
            ) from None
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}. Give another path.") from error
        console.print(
            f"wrote {path}; next: edit it, then `pyrite train {shlex.quote(str(path))}`",
            soft_wrap=True,
            highlight=False,
        )

    @app.command(rich_help_panel=panel)
    def check(run_file: RunFile, overrides: Overrides = None) -> None:
        """Check that a run file is well formed; print each error with its line, and notes on a local base model."""
        spec = load(run_file, overrides or ())
        console.print(
            f"{run_file} is well formed: run {spec.name}, {plural(spec.iterations, 'iteration')}", soft_wrap=True
        )
        notes = family_notes(spec)
        if Path(spec.model.base).is_dir():
            notes += model_notes(base_folder(spec.model.base, spec.model.revision), spec.model)
        for note in notes:
            console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)

    @app.command(rich_help_panel=panel)
    def fetch(
        data_set: Annotated[str, typer.Argument(metavar="DATA_SET", help="Its name: medquad.")],
        folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to save it.")] = Path("data"),
    ) -> None:
        """Download a public data set and show its licence. Resumes after a stop, and verifies checksums."""
        from pyrite.sources.fetch import fetch_medquad

        if data_set != "medquad":
            raise UserError(
                f"cannot fetch {data_set!r}: Pyrite only fetches medquad. Download it yourself, and set `source` to it."
            )
        step = Step("fetch")
        with Display(console) as display:
            display.started(step)
            path = fetch_medquad(folder, ProgressEvents(lambda event: display.event(step, event)))
        console.print(str(path), soft_wrap=True, highlight=False)
