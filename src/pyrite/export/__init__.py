"""Exports a model to the formats of other runtimes, and checks that its embeddings are the same there."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from pyrite.embedding import models
from pyrite.errors import UserError
from pyrite.export import layout, serving
from pyrite.export.checking import Check, Reference, check
from pyrite.export.formats import FORMATS, PLAIN, Format
from pyrite.export.runtimes import RUNTIMES, Runtime, runtimes_of
from pyrite.export.serving import Export
from pyrite.export.source import Source, of_folder, of_run
from pyrite.locks import locked

__all__ = ["FORMATS", "PLAIN", "Check", "Export", "Reference", "Source", "check", "export", "of_folder", "of_run"]

_LOCK = ".lock"

#: A format and a runtime that reads it.
Task = tuple[Format, Runtime]


def export(
    source: Source,
    formats: Sequence[str],
    out: Path,
    min_cosine: float | None = None,
    check_in: Sequence[str] = (),
    on_progress: Callable[[str], None] = lambda _: None,
) -> Export:
    """Write the model in the plain layout and in ``formats`` to the folder ``out``, and check each with a runtime.

    Everything is written to a folder next to ``out``, which becomes ``out`` after all checks passed. An earlier export
    at ``out`` is replaced.

    Args:
        min_cosine: the lowest cosine similarity that passes; None: the default of each format.
        check_in: names of runtimes in which to check the formats besides the first runtime of each.
        on_progress: receives a sentence at the beginning of each part of the work.

    Raises:
        UserError: a format or a runtime is unknown or not installed; a format cannot be written or does not pass; or
            ``out`` is not an export.
    """
    chosen = _choose(formats)
    tasks, unchecked = _choose_runtimes(chosen, check_in)
    with _staging(out) as folder:
        on_progress(f"loading {source.name}")
        model = models.load(source.folder, source.folder, source.spec, "cpu", precision="float32")
        layout.save(model, source.name, folder)
        for each in chosen:
            on_progress(f"writing {each.name}")
            each.write(folder, folder)
        on_progress("embedding the texts of the check with the trained model")
        start = time.monotonic()
        reference = Reference.of(source, model)
        seconds = time.monotonic() - start
        checks = []
        for number, (each, runtime) in enumerate(tasks, 1):
            on_progress(
                f"check {number} of {len(tasks)}: embedding {len(reference.texts):,} texts with {each.name} "
                f"in {runtime.name} (the trained model took {seconds:.0f} s)"
            )
            checks.append(check(each, runtime, folder, reference, min_cosine))
        done = Export(out, checks, [(each.name, runtime) for each, runtime in unchecked])
        versions = {name: version(name) for name in ("sentence-transformers", "transformers", "torch")}
        serving.write_parity(folder, source, reference.texts, versions, done)
        serving.write_vectors(folder, reference.texts, reference.vectors)
        serving.write_card(folder, source, done)
    return done


def _choose(names: Sequence[str]) -> list[Format]:
    """The formats to write, in the order of FORMATS, with PLAIN."""
    if not names:
        raise UserError(f"--to names no format. Choose from {', '.join(FORMATS)}.")
    for name in names:
        if name not in FORMATS:
            raise UserError(f"--to: there is no format {name!r}. The formats are {', '.join(FORMATS)}.")
    chosen = [each for each in FORMATS.values() if each.name in {PLAIN, *names}]
    for each in chosen:
        each.check_packages()
    return chosen


def _choose_runtimes(chosen: Sequence[Format], check_in: Sequence[str]) -> tuple[list[Task], list[Task]]:
    """The checks to make, and those that are left out: other runtimes take up to minutes each.

    Raises:
        UserError: a runtime is unknown, reads none of the formats, or is not installed.
    """
    for name in check_in:
        if name not in RUNTIMES:
            raise UserError(f"--check-in: there is no runtime {name!r}. The runtimes are {', '.join(RUNTIMES)}.")
        if not {each.name for each in chosen} & {*RUNTIMES[name].formats}:
            formats = " or ".join(RUNTIMES[name].formats)
            raise UserError(f"--check-in: {name} reads none of the formats to write. Add {formats} to --to.")
    tasks: list[Task] = []
    unchecked: list[Task] = []
    for each in chosen:
        for number, runtime in enumerate(runtimes_of(each.name)):
            (tasks if number == 0 or runtime.name in check_in else unchecked).append((each, runtime))
    for each, runtime in tasks:
        if not runtime.command():
            raise UserError(
                f"{each.name} cannot be checked: {runtime.name} is not installed. Install with: {runtime.install}"
            )
    return tasks, unchecked


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """An empty folder next to ``out``, which becomes ``out`` if the body succeeds and is deleted if it fails.

    Raises:
        UserError: ``out`` exists and is not an export, cannot be created, or another process exports to it.
    """
    out = out.absolute()
    _check_replaceable(out)
    folder, old = (out.parent / f".{out.name}.{name}" for name in ("partial", "replaced"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--out: cannot create a folder in {out.parent} ({reason}). Choose another folder.") from error
    with locked(folder / _LOCK, f"the export to {out}"):
        if old.exists() and not out.exists():  # killed between the two renames below
            old.rename(out)
        _clear(folder)
        try:
            yield folder
            _share(folder)
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                out.rename(old)
            (folder / _LOCK).unlink()
            folder.rename(out)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check_replaceable(out: Path) -> None:
    if out.is_dir() and (not any(out.iterdir()) or (out / serving.PARITY).is_file()):
        return
    if out.exists() or out.is_symlink():
        raise UserError(
            f"--out: {out} exists and is not an export (it has no {serving.PARITY}), so it is not replaced. Choose "
            "another folder."
        )


def _clear(folder: Path) -> None:
    """Delete the files of an export that was killed, except the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def _share(folder: Path) -> None:
    """Give all files the usual permissions. Weights are written so that only their owner can read them."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)
