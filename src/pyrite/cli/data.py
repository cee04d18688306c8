"""pyrite init, check, estimate, fetch: the verbs before a run."""

from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pyrite.cli.common import Overrides, RunFile, StoreOption, console, run_from_file, show_no_go
from pyrite.cli.display import Display
from pyrite.config import load
from pyrite.costs import DEFAULT_MACHINE
from pyrite.costs import machine as machine_named
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
    PARQUET = "parquet"
    BEIR = "beir"
    HUGGINGFACE = "huggingface"
    DOCUMENTS = "documents"


def register(app: typer.Typer) -> None:
    """Add the verbs to ``app``."""
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
        console.print(f"wrote {path}; next: edit it, then `pyrite train {path}`", soft_wrap=True, highlight=False)

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
    def estimate(
        run_file: RunFile,
        overrides: Overrides = None,
        store: StoreOption = "store",
        machine: Annotated[
            str, typer.Option("--machine", help="Machine type of the judge's servers.")
        ] = DEFAULT_MACHINE,
        machines: Annotated[int, typer.Option("--machines", min=1, help="Number of those machines.")] = 1,
    ) -> None:
        """Estimate a run: pairs, tokens, hours and dollars of judging; time and memory of the rest.

        If `pyrite probe` has run, the estimate uses the speed that it measured.
        """
        from pyrite import estimate as estimating

        run, on = run_from_file(run_file, overrides, store), machine_named(machine)
        console.print(f"without judging: {estimating.estimate(run, on, machines).summary}", highlight=False)
        if assessing := estimating.estimate_assessing(run, on, machines):
            text = estimating.describe_assessing(run, assessing, on, machines)
            console.print(text, highlight=False, markup=False)
        if not run.spec.judge.needs_server:
            console.print("judging: free, no server", highlight=False)
            return
        cost = estimating.estimate_judging(run, on, machines)
        table = Table(box=None, show_header=False, pad_edge=False)
        requests = f" ({cost.requests} requests each)" if cost.requests > 1 else ""
        speed = "measured by the probe" if cost.measured else f"not measured yet ({on.speed_source})"
        for name, value in (
            ("pairs", f"{cost.pairs:,} at most{requests}; pairs cached by earlier runs are not judged again"),
            (
                "prompt tokens",
                f"{cost.prompt_tokens:,}, {cost.computed_tokens:,} of them computed, the rest cached",
            ),
            ("machine", f"{machines} x {on.name} ({on.what})"),
            ("hours", f"{cost.hours:.1f}; speed: {speed}"),
            ("dollars", f"{cost.dollars:,.2f} at {on.dollars_per_hour} an hour ({on.price_source})"),
        ):
            table.add_row(name, value)
        console.print(table)
        if run.spec.judge.kind == "cascade":
            console.print(estimating.CASCADE_NOTE, highlight=False)
        show_no_go(run)
        if not cost.measured:
            console.print(f"`pyrite probe {run_file}` measures the judge's speed and its quality", highlight=False)

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
