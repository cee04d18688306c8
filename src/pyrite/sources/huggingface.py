"""A data set that the ``datasets`` library reads: a hub id, or a local folder."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pyrite.errors import UserError
from pyrite.sources import files
from pyrite.sources.base import Record
from pyrite.sources.qa import to_records
from pyrite.sources.rows import Row
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
            UserError: the data set, configuration or split does not exist, or a row cannot be used.
        """
        return to_records(self._rows(), self._spec, id_column=None)

    def digest(self) -> str:
        """Hex sha256 of the folder's contents, or of the hub's commit, and of the source's settings.

        Raises:
            UserError: ``revision`` is not set, and the hub cannot be reached to find the latest revision.
        """
        settings = self._spec.model_dump_json(exclude={"id", "revision"})
        if self._folder is not None:
            paths = [self._folder] if self._folder.is_file() else sorted(self._folder.rglob("*"))
            return files.digest(self._folder, (path for path in paths if path.is_file()), settings)
        return hashlib.sha256(f"{settings}\0{self._spec.id}\0{self._revision}".encode()).hexdigest()

    def _rows(self) -> Iterator[Row]:
        name = f"{self._spec.id} ({self._spec.split})"
        dataset = self._load()
        try:
            for number, row in enumerate(dataset, start=1):
                yield f"{name}, row {number}", str(number), row
        except UserError:
            raise
        except Exception as error:
            # Streaming reads a damaged file only now, and many libraries may raise the error.
            raise UserError(f"{name}: cannot be read to its end ({_first_line(error)}). Fix the file.") from error

    def _load(self) -> Iterable[Mapping[str, Any]]:
        import datasets

        spec = self._spec
        try:
            if self._folder is None:
                dataset = datasets.load_dataset(spec.id, spec.name, split=spec.split, revision=self._revision)
            elif any((self._folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
                saved = datasets.load_from_disk(str(self._folder))
                dataset = saved[spec.split] if isinstance(saved, datasets.DatasetDict) else saved
            else:
                # Streaming reads the current files; without it, the library may return a cached copy.
                dataset = datasets.load_dataset(str(self._folder), spec.name, split=spec.split, streaming=True)
        except UserError:
            raise
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise UserError(
                f"source.id '{spec.id}': cannot be loaded ({_first_line(error)}). Check source.id, source.name "
                "and source.split; a private data set needs HF_TOKEN."
            ) from error
        return cast(Iterable[Mapping[str, Any]], dataset)

    @functools.cached_property
    def _revision(self) -> str:
        """The commit to read. It is resolved once, so that the digest and the records agree."""
        if self._spec.revision is not None:
            return self._spec.revision
        import huggingface_hub

        try:
            info = huggingface_hub.HfApi().dataset_info(self._spec.id, timeout=30)
        except Exception as error:
            raise UserError(
                f"source.id '{self._spec.id}': no such folder, and the hub cannot be reached for this data set "
                f"({_first_line(error)}). Check the name; to read it from the local cache, set source.revision to "
                "its commit."
            ) from error
        return str(info.sha)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
