"""Getting MedQuAD as published, once: resumed where it was cut off, verified by content, cached."""

import hashlib
import json
import random
import time
from pathlib import Path

import requests

from pyrite.errors import UserError
from pyrite.progress import Progress
from pyrite.sources import archive

MEDQUAD_COMMIT = "577bd37b96c02d1833b2c9eed2de9f96964e96cb"
MEDQUAD_URL = f"https://github.com/abachaa/MedQuAD/archive/{MEDQUAD_COMMIT}.tar.gz"

#: ``content_sha256`` of that commit's 11,274 XML files. The archive's own digest is of no use: the host packs
#: archives afresh, and their bytes change while the files in them do not.
MEDQUAD_CONTENT = "3eac49028e3bba522f39734b416ec9ea5ce420864d24a0bf37762a90e67e1ef8"

LICENCE = (
    "MedQuAD is published under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). Cite: A. Ben "
    "Abacha and D. Demner-Fushman, A Question-Entailment Approach to Question Answering, BMC Bioinformatics "
    "20, 511 (2019), https://doi.org/10.1186/s12859-019-3119-4"
)

_TIMEOUT = (10.0, 60.0)
_ATTEMPTS = 5
# What has come of a block is lost when the connection is cut, so blocks are small.
_BLOCK = 1 << 14
_WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}


def fetch_medquad(destination: Path, progress: Progress, url: str = MEDQUAD_URL, sha256: str | None = None) -> Path:
    """Download MedQuAD's archive to ``destination`` and return the file's path, for ``source.path``.

    ``destination`` is a file name that ends in .tar.gz or .tgz, or else a folder. What is already there and
    verified is not downloaded again; a download that was cut off goes on where it stopped. ``sha256`` is the
    ``content_sha256`` to expect; for the default ``url`` it is known.

    Raises:
        UserError: no network, the server refuses, or what is there is not MedQuAD. Says what to do by hand.
    """
    expected = sha256 or (MEDQUAD_CONTENT if url == MEDQUAD_URL else None)
    target = destination
    if destination.is_dir() or not destination.name.endswith((".tar.gz", ".tgz")):
        target = destination / f"medquad-{MEDQUAD_COMMIT[:12]}.tar.gz"
    progress.message(LICENCE)
    if target.is_file():
        _verify(target, expected, f"Remove it and run the same command again. {_by_hand(url, target)}")
        progress.message(f"{target}: already there{' and verified' if expected else ''}.")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    _download(url, part, target, progress)
    try:
        _verify(part, expected, f"It was removed. {_by_hand(url, target)}")
    except UserError:
        part.unlink()
        raise
    part.replace(target)
    _memo(part).unlink(missing_ok=True)
    progress.message(f"{target}: {'verified' if expected else 'whole, but there is no digest to verify it by'}.")
    return target


def content_sha256(path: Path) -> str:
    """Hex sha256 over the archive's XML files: of ``<name without the top folder>\\0<hex sha256>\\n`` each,
    sorted.

    Raises:
        UserError: not a readable archive.
    """
    lines = sorted(
        f"{name.partition('/')[2]}\0{hashlib.sha256(content).hexdigest()}\n"
        for name, content in archive.members(path, ".xml")
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _verify(path: Path, expected: str | None, what_to_do: str) -> None:
    try:
        found = content_sha256(path)
    except UserError as error:
        raise UserError(f"{error} {what_to_do}") from error
    if expected is not None and found != expected:
        raise UserError(
            f"{path.absolute()}: its XML files are not the published ones (content sha256 {found}, expected "
            f"{expected}). {what_to_do}"
        )


def _by_hand(url: str, target: Path) -> str:
    return (
        f"By hand: download {url} in a browser or on another machine, save it as {target.absolute()}, and "
        "run the same command again: it checks the file and goes on."
    )


def _download(url: str, part: Path, target: Path, progress: Progress) -> None:
    """Bring all of ``url`` into ``part``, in as many attempts as it takes, up to a limit."""
    problem: Exception | str = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(min(30.0, 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0))
        try:
            _attempt(url, part, progress)
            return
        except requests.HTTPError as error:
            problem = error
            if error.response.status_code not in _WORTH_ANOTHER_TRY:
                break
        except requests.exceptions.ChunkedEncodingError as error:
            problem = error
            progress.message("the connection was cut; trying again")
        except requests.Timeout as error:
            problem = error
        except requests.ConnectionError as error:
            problem = error
            if not part.exists():
                break
        except requests.RequestException as error:
            problem = error
            break
    kept = f" {part.stat().st_size:,} bytes are kept and will not be downloaded again." if part.exists() else ""
    raise UserError(f"{url}: cannot be downloaded ({problem}).{kept} {_by_hand(url, target)}")


def _attempt(url: str, part: Path, progress: Progress) -> None:
    # A packed archive must come as it is: a second, transparent compression would make byte ranges
    # meaningless.
    headers = {"Accept-Encoding": "identity"}
    have = part.stat().st_size if part.is_file() else 0
    validator = _validator(part, url)
    if have and validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == 416:
            part.unlink(missing_ok=True)
            raise requests.exceptions.ChunkedEncodingError("the part that was kept is of no use any more")
        response.raise_for_status()
        resumed = response.status_code == 206 and _starts_at(response, have)
        if response.status_code == 206 and not resumed:
            part.unlink(missing_ok=True)
            raise requests.exceptions.ChunkedEncodingError("the server sent another range than was asked for")
        etag = response.headers.get("ETag", "")
        # A weak ETag may stand for other bytes, so nothing can be resumed by it.
        again = response.headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
        _memo(part).write_text(json.dumps({"url": url, "validator": again}), encoding="utf-8")
        length = response.headers.get("Content-Length")
        start = have if resumed else 0
        progress.begin(start + int(length) if length else None, "bytes")
        progress.advance(start)
        with part.open("ab" if resumed else "wb") as file:
            for block in response.iter_content(_BLOCK):
                file.write(block)
                progress.advance(len(block))
    if length and part.stat().st_size != start + int(length):
        raise requests.exceptions.ChunkedEncodingError(f"{part.stat().st_size} of {start + int(length)} bytes came")


def _starts_at(response: requests.Response, offset: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _memo(part: Path) -> Path:
    """Where the address and the ETag of a partial download are kept."""
    return part.with_name(part.name + ".json")


def _validator(part: Path, url: str) -> str:
    try:
        memo = json.loads(_memo(part).read_text(encoding="utf-8"))
        return str(memo["validator"]) if memo["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
