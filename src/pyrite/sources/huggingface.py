"""A data set that the ``datasets`` library reads: a hub id, or a local folder."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pyrite.errors import UserError
from pyrite.sources import files
from pyrite.sources.base import Note, Record
from pyrite.sources.qa import to_records
from pyrite.sources.rows import Row, columns_of
from pyrite.spec import HuggingfaceSource


class Huggingface:
    """The source ``huggingface``."""

    def __init__(self, spec: HuggingfaceSource) -> None:
        self._spec = spec
        local = Path(spec.id).expanduser()
        self._folder = local if local.exists() else None
        self._skipped: list[str] = []
        self._other_splits: list[str] = []

    def records(self) -> Iterator[Record]:
        """Yield a Document and a Question per row.

        Raises:
            UserError: the data set, configuration or split does not exist, or a row cannot be used.
        """
        dataset = self._load()
        yield from files.skipped_note(self._skipped, "the datasets library reads files of one format")
        if self._other_splits:
            yield Note(f"source.split is {self._spec.split}; not read: {', '.join(self._other_splits)}.")
        yield from to_records(lambda: self._rows(dataset), self._spec, id_column=None)

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

    def _rows(self, dataset: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
        name = f"{self._spec.id} ({self._spec.split})"
        try:
            for number, row in enumerate(dataset, start=1):
                yield f"{name}, row {number}", str(number), row
        except UserError:
            raise
        except Exception as error:
            # Streaming reads a damaged file only now, and many libraries may raise the error.
            raise UserError(f"{name}: cannot be read to its end ({_first_line(error)}). Fix the file.") from error

    def _load(self) -> Iterable[Mapping[str, Any]]:
        """The rows. Also sets ``_skipped`` (the files of a local folder that are in no split) and ``_other_splits``."""
        import datasets

        spec = self._spec
        try:
            if self._folder is None:
                dataset = self._load_from_hub()
            elif any((self._folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
                saved = datasets.load_from_disk(str(self._folder))
                if isinstance(saved, datasets.DatasetDict):
                    self._other_splits = _splits_not_in(spec.split, saved)
                    dataset = saved[spec.split]
                else:
                    dataset = saved
            else:
                builder = datasets.load_dataset_builder(str(self._folder), spec.name)
                self._skipped = _not_in(builder.config.data_files or {}, self._folder)
                self._other_splits = _splits_not_in(spec.split, builder.config.data_files or {})
                options = self._csv_options if _is_csv(builder.config) else {}
                # Streaming reads the current files; without it, the library may return a cached copy.
                dataset = datasets.load_dataset(
                    str(self._folder), spec.name, split=spec.split, streaming=True, **options
                )
        except UserError:
            raise
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise UserError(
                f"source.id '{spec.id}': cannot be loaded ({_first_line(error)}). Check source.id, source.name "
                "and source.split; a private data set needs HF_TOKEN."
            ) from error
        return cast(Iterable[Mapping[str, Any]], dataset)

    def _load_from_hub(self) -> Any:
        import datasets

        spec = self._spec
        options: dict[str, Any] = {}
        try:
            builder = datasets.load_dataset_builder(spec.id, spec.name, revision=self._revision)
            options = self._csv_options if _is_csv(builder.config) else {}
            self._other_splits = _splits_not_in(spec.split, builder.info.splits or builder.config.data_files or {})
        except ValueError:
            if not datasets.config.HF_HUB_OFFLINE:
                raise
            options = self._csv_options  # a CSV data set is in the local cache under the options that it was read with
        return datasets.load_dataset(spec.id, spec.name, split=spec.split, revision=self._revision, **options)

    @property
    def _csv_options(self) -> dict[str, Any]:
        """Options to read CSV columns as they are: pandas would turn "NA", "None" and "null" into missing values."""
        columns = columns_of(self._spec, "question", "answer", "topic", "type", "title")
        return {"keep_default_na": False, "converters": dict.fromkeys(columns.values(), str)}

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


def _is_csv(config: object) -> bool:
    return hasattr(config, "keep_default_na")


def _splits_not_in(expression: str, splits: Iterable[Any]) -> list[str]:
    """The ``splits`` that a split expression such as "train" or "train[:10%]+test" does not name."""
    named = {part.partition("[")[0].strip() for part in expression.split("+")}
    return [str(split) for split in splits if str(split) not in named and "all" not in named]


def _not_in(data_files: Mapping[Any, Iterable[str]], folder: Path) -> list[str]:
    """Relative names of the files in ``folder`` that are not in ``data_files`` (split to paths), nor its README."""
    read = {Path(file).resolve() for paths in data_files.values() for file in paths}
    return [name for name in files.skipped(folder, "readme.md") if (folder / name).resolve() not in read]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
