"""Downloads MedQuAD, resumes interrupted downloads, and verifies the content."""

import hashlib
import json
from pathlib import Path

import requests
import tenacity

from pyrite.errors import UserError
from pyrite.progress import Progress
from pyrite.sources import archive

MEDQUAD_COMMIT = "577bd37b96c02d1833b2c9eed2de9f96964e96cb"
MEDQUAD_URL = f"https://github.com/abachaa/MedQuAD/archive/{MEDQUAD_COMMIT}.tar.gz"

#: ``content_sha256`` of that commit's 11,274 XML files. The archive's own digest is useless: the host packs archives
#: on demand, so their bytes change while the files in them do not.
MEDQUAD_CONTENT = "3eac49028e3bba522f39734b416ec9ea5ce420864d24a0bf37762a90e67e1ef8"

LICENCE = (
    "MedQuAD is published under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). Cite: A. Ben "
    "Abacha and D. Demner-Fushman, A Question-Entailment Approach to Question Answering, BMC Bioinformatics "
    "20, 511 (2019), https://doi.org/10.1186/s12859-019-3119-4"
)

_TIMEOUT = (10.0, 60.0)  # seconds to connect, and between bytes
_ATTEMPTS = 5
_BLOCK = 1 << 14  # bytes; small, because an incomplete block is lost
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}


def fetch_medquad(destination: Path, progress: Progress, url: str = MEDQUAD_URL, sha256: str | None = None) -> Path:
    """Download MedQuAD's archive to ``destination`` and return the file's path, for ``source.path``.

    ``destination`` is a file name that ends in .tar.gz or .tgz, or else a folder. A file that is already there is
    verified and not downloaded again; an interrupted download is resumed. ``sha256`` is the expected
    ``content_sha256``; for the default ``url`` it is known.

    Raises:
        UserError: the download failed, or the file is not MedQuAD. Explains how to download it by hand.
    """
    expected = sha256 or (MEDQUAD_CONTENT if url == MEDQUAD_URL else None)
    target = destination
    if destination.is_dir() or not destination.name.endswith((".tar.gz", ".tgz")):
        target = destination / f"medquad-{MEDQUAD_COMMIT[:12]}.tar.gz"
    progress.message(LICENCE)
    if target.is_file():
        _verify(target, expected, f"Remove it and run the same command again. {_manual_steps(url, target)}")
        progress.message(f"{target}: already there{' and verified' if expected else ''}.")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    _download(url, part, target, progress)
    try:
        _verify(part, expected, f"It was removed. {_manual_steps(url, target)}")
    except UserError:
        part.unlink()
        raise
    part.replace(target)
    _state_file(part).unlink(missing_ok=True)
    progress.message(f"{target}: {'verified' if expected else 'complete, but there is no digest to verify it'}.")
    return target


def content_sha256(path: Path) -> str:
    """Hex sha256 of the sorted lines ``<name without the top folder>\\0<hex sha256>\\n``, one per XML file.

    Raises:
        UserError: not a readable archive.
    """
    lines = sorted(
        f"{name.partition('/')[2]}\0{hashlib.sha256(content).hexdigest()}\n"
        for name, content in archive.members(path, ".xml")
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _verify(path: Path, expected: str | None, advice: str) -> None:
    try:
        found = content_sha256(path)
    except UserError as error:
        raise UserError(f"{error} {advice}") from error
    if expected is not None and found != expected:
        raise UserError(
            f"{path.absolute()}: its XML files are not the published ones (content sha256 {found}, expected "
            f"{expected}). {advice}"
        )


def _manual_steps(url: str, target: Path) -> str:
    return (
        f"By hand: download {url} in a browser or on another machine, save it as {target.absolute()}, and "
        "run the same command again: it verifies the file."
    )


def _download(url: str, part: Path, target: Path, progress: Progress) -> None:
    """Download ``url`` to ``part``, with retries that resume."""

    def is_transient(error: BaseException) -> bool:
        if isinstance(error, requests.HTTPError):
            return error.response.status_code in _TRANSIENT_STATUS
        if isinstance(error, requests.exceptions.ChunkedEncodingError | requests.Timeout):
            return True
        return isinstance(error, requests.ConnectionError) and part.exists()

    def report(state: tenacity.RetryCallState) -> None:
        if state.outcome and isinstance(state.outcome.exception(), requests.exceptions.ChunkedEncodingError):
            progress.message("the connection was cut; retrying")

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_random_exponential(max=30),
        before_sleep=report,
        reraise=True,
    )
    try:
        retrying(_download_rest, url, part, progress)
    except requests.RequestException as error:
        saved = f" {part.stat().st_size:,} bytes are saved and will be resumed." if part.exists() else ""
        raise UserError(f"{url}: cannot be downloaded ({error}).{saved} {_manual_steps(url, target)}") from error


def _download_rest(url: str, part: Path, progress: Progress) -> None:
    """Download the rest of the file to ``part``, or all of it if the server sends no range or the file has changed."""
    # Transparent compression would make byte ranges meaningless.
    headers = {"Accept-Encoding": "identity"}
    size = part.stat().st_size if part.is_file() else 0
    validator = _validator(part, url)
    if size and validator:
        headers |= {"Range": f"bytes={size}-", "If-Range": validator}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == 416:
            part.unlink(missing_ok=True)
            raise requests.exceptions.ChunkedEncodingError("the partial download does not match the file any more")
        response.raise_for_status()
        resumed = response.status_code == 206 and _starts_at(response, size)
        if response.status_code == 206 and not resumed:
            part.unlink(missing_ok=True)
            raise requests.exceptions.ChunkedEncodingError("the server sent another range than requested")
        etag = response.headers.get("ETag", "")
        # A weak ETag does not guarantee equal bytes, so it cannot be used to resume.
        strong = response.headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
        _state_file(part).write_text(json.dumps({"url": url, "validator": strong}), encoding="utf-8")
        length = response.headers.get("Content-Length")
        start = size if resumed else 0
        progress.begin(start + int(length) if length else None, "bytes")
        progress.advance(start)
        with part.open("ab" if resumed else "wb") as file:
            for block in response.iter_content(_BLOCK):
                file.write(block)
                progress.advance(len(block))
    if length and part.stat().st_size != start + int(length):
        received, total = part.stat().st_size, start + int(length)
        raise requests.exceptions.ChunkedEncodingError(f"received {received} of {total} bytes")


def _starts_at(response: requests.Response, offset: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _state_file(part: Path) -> Path:
    """The file with the URL of a partial download and its ETag or Last-Modified."""
    return part.with_name(part.name + ".json")


def _validator(part: Path, url: str) -> str:
    try:
        state = json.loads(_state_file(part).read_text(encoding="utf-8"))
        return str(state["validator"]) if state["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
