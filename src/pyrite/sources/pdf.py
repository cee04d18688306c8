"""The text of PDF files."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyrite.sources.html_text import Page
from pyrite.sources.optional import import_library

#: Reasons for dropping a file or a page.
NOT_READABLE = "PDF file that cannot be read"
PAGE_NOT_READABLE = "PDF page that cannot be read"
ENCRYPTED = "PDF file with a password, or with AES encryption and no package cryptography"
WITHOUT_TEXT = "PDF file without text: scanned, so run OCR first"

#: A line at the top or bottom of pages is a running header or footer if at least this number of pages have it, and at
#: least this share. Digits count as equal, because of page numbers.
_MIN_PAGES = 3
_MIN_SHARE = 0.5
_MARGIN_LINES = 2

#: Ligatures are characters of their own in many fonts. A word with one would differ from the word in a query.
_LIGATURES = dict(zip(range(0xFB00, 0xFB07), ("ff", "fi", "fl", "ffi", "ffl", "st", "st"), strict=True))
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u00ad]")
_HYPHENATED = re.compile(r"(?<=[^\W\d_])-\n(?=[a-zß-öø-ÿ])")
_FILE_NAME = re.compile(r"\.\w{2,4}$|^(?:Microsoft \w+ - |untitled)|[/\\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PdfText(Page):
    """The text of a PDF file, with its bookmarks as headings, and the numbers from 1 of its unreadable pages."""

    unreadable_pages: tuple[int, ...]


def read_pdf(file: Path) -> PdfText | str:
    """The text of ``file``, or the reason why it has to be dropped.

    Running headers, footers and page numbers are left out, and words that are hyphenated at the end of a line are
    joined. The title is that in the file's properties, if it is no file name.

    Raises:
        UserError: the library that reads PDF files is not installed.
    """
    pypdf = import_library("pypdf", "pypdf", "reading PDF files")
    # It logs a warning for each small defect.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    # A damaged file can make pypdf raise any error, its documentation says.
    try:
        with file.open("rb") as stream:
            reader = pypdf.PdfReader(stream)
            if reader.is_encrypted and not reader.decrypt(""):
                return ENCRYPTED
            pages, unreadable = _pages(reader)
            bookmarks = _bookmarks(reader)
            title = _title(reader)
    except (pypdf.errors.FileNotDecryptedError, pypdf.errors.DependencyError):
        return ENCRYPTED
    except OSError:
        raise
    except Exception:
        return NOT_READABLE
    pages = ["\n".join(lines) for lines in without_margins([clean(page).split("\n") for page in pages])]
    pages = [_HYPHENATED.sub("", page) for page in pages]
    if not any(pages):
        return NOT_READABLE if unreadable else WITHOUT_TEXT
    text, headings = _join(pages, bookmarks)
    return PdfText(text, title, headings, tuple(unreadable))


def _pages(reader: Any) -> tuple[list[str], list[int]]:
    """The text of each page, and the numbers from 1 of those that cannot be read."""
    pages, unreadable = [], []
    for number in range(len(reader.pages)):
        try:
            pages.append(reader.pages[number].extract_text())
        except Exception:
            pages.append("")
            unreadable.append(number + 1)
    return pages, unreadable


def _bookmarks(reader: Any) -> list[tuple[int, str]]:
    """(number of the page from 0, title) of each bookmark; none if they are damaged."""
    found: list[tuple[int, str]] = []
    try:
        todo = list(reversed(reader.outline))
        while todo:
            entry = todo.pop()
            if isinstance(entry, list):
                todo.extend(reversed(entry))
                continue
            page = reader.get_destination_page_number(entry)
            if page is not None and page >= 0 and (title := " ".join(clean(str(entry.title)).split())):
                found.append((page, title))
    except Exception:
        return []
    return found


def _title(reader: Any) -> str:
    try:
        title = " ".join(clean(str(reader.metadata.title or "")).split())
    except Exception:
        return ""
    return "" if _FILE_NAME.search(title) else title


def clean(text: str) -> str:
    """``text`` without ligatures, control characters and half surrogate pairs, and with stripped lines."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").translate(_LIGATURES)
    return "\n".join(" ".join(line.split()) for line in _CONTROL.sub("", text).split("\n")).strip()


def without_margins(pages: Sequence[Sequence[str]]) -> list[list[str]]:
    """The lines of each page without running headers and footers, and without page numbers at the top and bottom."""
    counts: Counter[tuple[bool, str]] = Counter()
    for lines in pages:
        counts.update({(False, _form(line)) for line in lines[:_MARGIN_LINES]})
        counts.update({(True, _form(line)) for line in lines[-_MARGIN_LINES:]})
    threshold = max(_MIN_PAGES, _MIN_SHARE * len(pages))

    def is_margin(bottom: bool, line: str) -> bool:
        return counts[bottom, _form(line)] >= threshold

    result = []
    for page in pages:
        lines = list(page)
        for _ in range(_MARGIN_LINES):
            if lines and is_margin(False, lines[0]):
                del lines[0]
            if lines and is_margin(True, lines[-1]):
                del lines[-1]
        result.append(lines)
    return result


def _form(line: str) -> str:
    return re.sub(r"\d+", "0", line)


def _join(pages: Sequence[str], bookmarks: Sequence[tuple[int, str]]) -> tuple[str, tuple[tuple[int, str], ...]]:
    """The pages as one text, and the offset of each bookmark: of its title on its page, or else of the page."""
    starts, length = [], 0
    for page in pages:
        starts.append(length)
        length += len(page) + 1 if page else 0
    headings = []
    for number, title in bookmarks:
        if number < len(pages):
            words = r"\s+".join(map(re.escape, title.split()))
            # A line of its own is rather the heading than its entry in a table of contents.
            line = re.compile(rf"^(?:[\dA-Z.]+\s+)?{words}$", re.IGNORECASE | re.MULTILINE)
            found = line.search(pages[number]) or re.search(words, pages[number], re.IGNORECASE)
            headings.append((starts[number] + (found.start() if found else 0), title))
    return "\n".join(filter(None, pages)), tuple(sorted(headings, key=lambda heading: heading[0]))
