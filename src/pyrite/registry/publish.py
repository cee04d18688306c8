"""Publishes the chosen model of a run as a version of a domain.

A publisher claims the next number with the list of the model's files, uploads the files, and writes version.json last.
Claim and version.json are written conditionally, so a number belongs to one list of files. Publishers of the same files
share the claim: the first one that writes version.json has published, and the others report that version. So publishing
the same model again resumes a killed publisher. It blocks no other publisher: they take the next number.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyrite.embedding.models import model_digest
from pyrite.errors import PyriteError
from pyrite.executors.step import Run
from pyrite.progress import Progress
from pyrite.registry import channels
from pyrite.registry.catalog import CLAIM, FORMAT, MODEL, VERSION, Catalog, Version, now, version_key
from pyrite.registry.lineage import check_gate, lineage, read_parity, read_result
from pyrite.registry.names import version_name, version_number
from pyrite.registry.selection import add_centroids
from pyrite.stages.context import fetch_verified_folder
from pyrite.store import Checksum, checksum_file

#: Attempts to claim a number before giving up.
_ATTEMPTS = 50

#: Name, size and sha256 of files.
Entries = list[dict[str, Any]]


@dataclass(frozen=True)
class StagedModel:
    """A copy of a run's model that is about to be published.

    Attributes:
        folder: the files to publish, by their names in the version ("model/config.json"). It is in the store's local
            folder.
        digest: as by ``models.model_digest``; equal for models that give the same embeddings.
    """

    folder: Path
    digest: str

    def entries(self) -> Entries:
        """The files of the model, and those that were added to the folder, sorted by name."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        named = sorted((path.relative_to(self.folder).as_posix(), checksum_file(path)) for path in paths)
        return [{"name": name, "bytes": checksum.size, "sha256": checksum.sha256} for name, checksum in named]


@contextmanager
def staged_model(run: Run) -> Iterator[StagedModel]:
    """A temporary copy of the chosen model of a finished run.

    Raises:
        PyriteError: a file of the model is missing or damaged.
    """
    outputs = run.manifests()["evaluate"]["outputs"]
    entries = [entry for entry in outputs if entry["key"].startswith(MODEL)]
    source = fetch_verified_folder(run.store, run.prefix, "model", entries)
    with TemporaryDirectory(dir=run.store.scratch(f"{run.prefix}/scratch/publish")) as folder:
        for entry in entries:
            path = Path(folder) / entry["key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / entry["key"].removeprefix(MODEL), path)
        yield StagedModel(Path(folder), model_digest(Path(folder) / MODEL))


def publish_run(
    run: Run, domain: str, force: str | None, export: Path | None, progress: Progress
) -> tuple[Version, bool]:
    """Publish the chosen model of a finished run in ``domain``, and move the channel latest to it.

    Args:
        force: the reason for publishing a model that did not meet the gate.
        export: a folder with the ``parity.json`` of an export of the model.

    Returns:
        The version of the model, and whether it is new.

    Raises:
        UserError: the run is not finished, is outdated or did not meet the gate, or ``export`` is of another model.
        PyriteError: an output of the run is missing or damaged; or as ``publish_model``.
    """
    report = read_result(run)
    forced = check_gate(report, force)
    catalog = Catalog(run.store)
    with staged_model(run) as model:
        parity = read_parity(export, model.digest) if export else None

        def facts() -> dict[str, Any]:
            centroids = add_centroids(run, model.folder, progress)
            return {**lineage(run, report), "forced": forced, "parity": parity, "centroids": centroids}

        version, is_new = publish_model(catalog, domain, model, facts, progress)
    number = version_number(version["version"])
    # Also for a known model: its publisher may have been killed before it moved the channel.
    catalog.move(domain, lambda history, stamp: channels.published(history, number, stamp))
    return version, is_new


def publish_model(
    catalog: Catalog, domain: str, model: StagedModel, facts: Callable[[], dict[str, Any]], progress: Progress
) -> tuple[Version, bool]:
    """Publish the model as the next version of ``domain``, unless the domain has a version with the same model.

    Args:
        facts: returns further content of version.json, and may add files to the folder of ``model``. It is called only
            if the model is new.

    Returns:
        The version, and whether this call has published it.

    Raises:
        PyriteError: files in the store change while they are published, or other publishers are always faster.
    """
    if known := catalog.find(domain, model.digest):
        return known, False
    content = facts()
    entries = model.entries()
    own = [entry for entry in entries if entry["name"].startswith(MODEL)]
    for _ in range(_ATTEMPTS):
        number = _claim(catalog, domain, own)
        if number is None:
            progress.message("another publisher was faster; taking the next number")
            continue
        _upload(catalog, domain, number, model, entries, progress)
        if not _has_claim(catalog, domain, number, own):
            continue  # a store without atomic conditional writes had two winners
        version = {
            "format": FORMAT,
            "domain": domain,
            "version": version_name(number),
            "digest": model.digest,
            "files": entries,
            **content,
            "published": now(),
            "attempt": uuid.uuid4().hex,
        }
        data = json.dumps(version, indent=1, allow_nan=False).encode()
        written = catalog.store.conditional_put(version_key(domain, number, VERSION), data, None)
        if written and written.data == data:
            return version, True
        if written and (other := json.loads(written.data))["digest"] == model.digest:
            return other, False
    raise PyriteError(f"cannot publish in {catalog.store}: other publishers are always faster. Try again.")


def _claim(catalog: Catalog, domain: str, entries: Entries) -> int | None:
    """The number under which to publish the files ``entries``: the one claimed for them, or else the next.

    None if another publisher has claimed the next number for other files.
    """
    finished, claimed = catalog.numbers(domain)
    for number in reversed(claimed):  # also of finished versions: the same files may have been published meanwhile
        if _has_claim(catalog, domain, number, entries):
            return number
    number = max([*finished, *claimed], default=0) + 1
    data = json.dumps({"files": entries, "claimed": now(), "attempt": uuid.uuid4().hex}, indent=1).encode()
    current = catalog.store.conditional_put(version_key(domain, number, CLAIM), data, None)
    return number if current and json.loads(current.data)["files"] == entries else None


def _has_claim(catalog: Catalog, domain: str, number: int, entries: Entries) -> bool:
    claim = catalog.store.read_versioned(version_key(domain, number, CLAIM))
    return claim is not None and json.loads(claim.data)["files"] == entries


def _upload(
    catalog: Catalog, domain: str, number: int, model: StagedModel, entries: Entries, progress: Progress
) -> None:
    """Upload the files of a claimed version, except those that are there already."""
    progress.begin(len(entries), "files published")
    for entry in entries:
        key, checksum = version_key(domain, number, entry["name"]), Checksum(entry["bytes"], entry["sha256"])
        if catalog.store.checksum(key) != checksum:
            copy = model.folder / f"{entry['name']}.upload"  # publishing moves it, and there may be another attempt
            shutil.copyfile(model.folder / entry["name"], copy)
            catalog.store.publish(copy, key)
        if catalog.store.checksum(key) != checksum:
            raise PyriteError(
                f"{catalog.store}/{key} changed after it was written, so {version_name(number)} is not published. Find "
                "out which process writes there, then publish again."
            )
        progress.advance()
