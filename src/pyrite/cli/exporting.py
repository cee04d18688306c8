"""pyrite export: a model in the formats of other runtimes, checked against the trained model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pyrite.cli.common import StoreOption, console, find_run

if TYPE_CHECKING:
    from pyrite.export import Export, Source


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command("export", rich_help_panel="Results")
    def command(
        model: Annotated[
            str,
            typer.Argument(
                metavar="MODEL", help="A run file or the name of a run, for its chosen model; or a model folder."
            ),
        ],
        to: Annotated[
            str,
            typer.Option(
                "--to",
                metavar="FORMATS",
                help="Formats, separated by commas: plain (always written), onnx, onnx-int8, openvino, gguf, static.",
            ),
        ] = "onnx",
        out: Annotated[
            Path | None,
            typer.Option("--out", metavar="DIR", help="The folder to write. Default: export/NAME."),
        ] = None,
        min_cosine: Annotated[
            float | None,
            typer.Option(
                "--min-cosine",
                min=0,
                max=1,
                help="The lowest cosine similarity with the trained model's embedding that passes, for any text. "
                "Default: by format.",
            ),
        ] = None,
        check_in: Annotated[
            str,
            typer.Option(
                "--check-in",
                metavar="RUNTIMES",
                help="More runtimes to check the formats in, separated by commas: fastembed, transformers.js, or vllm, "
                "which takes minutes.",
            ),
        ] = "",
        store: StoreOption = "store",
    ) -> None:
        """Export a model for other runtimes, after checking that it embeds there as the trained model does.

        A runtime of each format embeds 1,000 texts or more: empty and long texts, texts of many scripts, and the run's
        test queries and passages. If an embedding differs too much, nothing is written (exit code 2).
        DIR gets a model card with a section on serving, parity.json with the measurements, and serving/vectors.json
        with embeddings to test other loaders.
        """
        from pyrite.export import export

        source = _source(model, store)
        done = export(source, _names(to), out or Path("export") / source.name, min_cosine, _names(check_in), _message)
        _show(done)


def _names(option: str) -> list[str]:
    return [name.strip() for name in option.split(",") if name.strip()]


def _message(text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _source(model: str, store: str) -> "Source":
    """The run or the model folder that the user named. The name of a run has no slash and no colon."""
    from pyrite.export import of_folder, of_run

    if model.endswith((".yaml", ".yml")):
        return of_run(find_run(model, store))
    if "/" in model or ":" in model or Path(model).is_dir():
        return of_folder(model)
    return of_run(find_run(model, store))


def _show(done: "Export") -> None:
    from pyrite.export.serving import table_row

    table = Table(box=None, pad_edge=False)
    rows = [table_row(check) for check in done.checks]
    shown = [name for name in rows[0] if name != "texts/s"]  # 80 columns
    for name in shown:
        table.add_column(name, justify="left" if name in ("format", "runtime") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    console.print(table)
    console.print(
        "lowest, mean: cosine similarity with the trained model's embeddings, rounded down; "
        "top 10: share of the same passages; MRR@5: change from the trained model; "
        "speed: in batches of 32, relative to the trained model.",
        highlight=False,
    )
    for check in done.checks:
        for note in check.notes:
            console.print(f"note: {check.runtime}: {note}", highlight=False, markup=False)
    if done.unchecked:
        left_out = ", ".join(f"{name} in {runtime.name}" for name, runtime in done.unchecked)
        console.print(f"not checked (see --check-in): {left_out}", highlight=False, markup=False)
    console.print(str(done.folder), soft_wrap=True, highlight=False)
