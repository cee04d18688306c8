"""Copies the model of a version to a folder, and verifies it."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from pyrite.errors import PyriteError, UserError
from pyrite.progress import Progress
from pyrite.registry.catalog import MODEL, Catalog, Version


def pull(catalog: Catalog, version: Version, folder: Path, progress: Progress) -> None:
    """Copy the model files of ``version`` to ``folder``, which must be empty or not exist.

    All files are verified before the folder gets its name, so a folder with this name is complete.

    Raises:
        UserError: ``folder`` has files, or cannot be written to.
        PyriteError: a file is missing or damaged.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder, and nothing was changed. Give another path, or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    entries = [entry for entry in version["files"] if entry["name"].startswith(MODEL)]
    progress.begin(len(entries), "files copied")
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        model = Path(temporary) / "model"
        for entry in entries:
            path = model / entry["name"].removeprefix(MODEL)
            if ".." in path.parts or not path.is_relative_to(model):  # "model//etc/x" is absolute
                raise PyriteError(
                    f"{version['domain']} {version['version']} names a file outside its folder: {entry['name']}."
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(catalog.fetch_file(version, entry["name"]), path)
            progress.advance()
        model.replace(folder)
