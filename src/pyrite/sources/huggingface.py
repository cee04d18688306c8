"""A data set read through the ``datasets`` library: a hub id, or a local folder."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pyrite.errors import UserError
from pyrite.sources import files, rows
from pyrite.sources.base import Record
from pyrite.spec import HuggingfaceSource


class Huggingface:
    """The source ``huggingface``."""

    def __init__(self, spec: HuggingfaceSource) -> None:
        self._spec = spec
        local = Path(spec.id).expanduser()
        self._folder = local if local.exists() else None

    def records(self) -> Iterator[Record]:
        """Yield a Document and a Question per row.

        Raises:
            UserError: the data set, configuration or split is not there, or a row cannot be used.
        """
        return rows.to_records(self._rows(), self._spec, id_column=None)

    def digest(self) -> str:
        """Hex sha256 of the folder's contents, or of the hub's commit, and of the settings.

        Raises:
            UserError: ``revision`` is not set and the hub cannot be asked for the newest.
        """
        settings = self._spec.model_dump_json(exclude={"id", "revision"})
        if self._folder is not None:
            found = (
                [f for f in sorted(self._folder.rglob("*")) if f.is_file()] if self._folder.is_dir() else [self._folder]
            )
            return files.digest(self._folder, found, settings)
        return hashlib.sha256(f"{settings}\0{self._spec.id}\0{self._revision}".encode()).hexdigest()

    def _rows(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        name = f"{self._spec.id} ({self._spec.split})"
        loaded = self._load()
        try:
            for number, row in enumerate(loaded, start=1):
                yield f"{name}, row {number}", str(number), row
        except UserError:
            raise
        except Exception as error:
            # Streaming finds out about a broken file only when it gets there, and with errors of many
            # libraries.
            raise UserError(f"{name}: cannot be read any further ({_short(error)}). Mend the file.") from error

    def _load(self) -> Iterable[Mapping[str, Any]]:
        import datasets

        spec = self._spec
        try:
            if self._folder is None:
                revision = self._revision
                loaded = datasets.load_dataset(spec.id, spec.name, split=spec.split, revision=revision)
            elif any((self._folder / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
                saved = datasets.load_from_disk(str(self._folder))
                loaded = saved[spec.split] if isinstance(saved, datasets.DatasetDict) else saved
            else:
                # Streaming reads the files as they are now; the library's cache would keep a copy of its own.
                loaded = datasets.load_dataset(str(self._folder), spec.name, split=spec.split, streaming=True)
        except UserError:
            raise
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise UserError(
                f"source.id '{spec.id}': cannot be loaded ({_short(error)}). Check source.id, source.name "
                "and source.split; a private data set needs HF_TOKEN."
            ) from error
        return cast(Iterable[Mapping[str, Any]], loaded)

    @functools.cached_property
    def _revision(self) -> str:
        """The commit that is read, so that a digest and the records it stands for cannot differ."""
        if self._spec.revision is not None:
            return self._spec.revision
        import huggingface_hub

        try:
            info = huggingface_hub.HfApi().dataset_info(self._spec.id, timeout=30)
        except Exception as error:
            raise UserError(
                f"source.id '{self._spec.id}': no such folder, and the hub cannot be asked for this data set "
                f"({_short(error)}). Check the name; to read it from the local cache, set source.revision to "
                "its commit."
            ) from error
        return str(info.sha)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
