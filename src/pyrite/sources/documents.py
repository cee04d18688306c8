"""Documents without questions: text, Markdown, HTML and PDF files, or rows of a JSONL, CSV or Parquet file."""

from collections.abc import Iterator
from pathlib import Path

from pyrite.errors import UserError
from pyrite.sources import files, html_text, markdown, pdf, rows
from pyrite.sources.base import Document, Dropped, Record
from pyrite.spec import DocumentsSource

_MARKDOWN = (".md", ".mdx")
_HTML = (".html", ".htm")
_PDF = ".pdf"
_SUFFIXES = (".txt", *_MARKDOWN, *_HTML, _PDF)


class Documents:
    """The source ``documents``. It yields no questions."""

    def __init__(self, spec: DocumentsSource) -> None:
        self._spec = spec
        self._columns = rows.columns_of(spec, "text", "title", "topic", "id")

    def records(self) -> Iterator[Record]:
        """Yield a Document for each file or row, and a Dropped for each HTML or PDF file without usable text.

        Raises:
            UserError: the file format is not supported, or a file or row cannot be read. Names the file and the line
                or row.
        """
        path = files.existing(self._spec.path)
        name = path.name.lower()
        row_format = next((each for each, suffixes in rows.SUFFIXES.items() if name.endswith(suffixes)), None)
        if path.is_dir() or name.endswith(_SUFFIXES):
            yield from files.skipped_note(
                files.skipped(path, *_SUFFIXES), f"only {_listed(_SUFFIXES)} files are read in a folder"
            )
            for file in files.find(path, *_SUFFIXES):
                yield from _read_file(file, file.relative_to(path).as_posix() if file != path else file.name)
        elif row_format:
            yield from self._read_rows(path, row_format)
        else:
            row_suffixes = [suffix for suffixes in rows.SUFFIXES.values() for suffix in suffixes]
            raise UserError(
                f"{path.absolute()}: not a supported file format. Set source.path to a folder of "
                f"{_listed(_SUFFIXES)} files, or to a file with rows: {', '.join(row_suffixes)}."
            )

    def digest(self) -> str:
        """Hex sha256 of the files and of the source's settings."""
        path = files.existing(self._spec.path)
        return files.digest(path, files.find(path, *_SUFFIXES), self._spec.model_dump_json(exclude={"path"}))

    def _read_rows(self, path: Path, row_format: str) -> Iterator[Document]:
        def located() -> Iterator[rows.Row]:
            read = rows.read(path, row_format, self._columns)
            return ((f"{path.absolute()}:{number}", str(number), row) for number, row in read)

        optional = rows.columns_of(self._spec, "title", "topic")
        for _, key, text in rows.texts(located, {"text": self._spec.text}, optional, self._spec.id):
            yield Document(key, text["text"], title=text.get("title", ""), topic=text.get("topic", ""))


def _read_file(file: Path, name: str) -> Iterator[Document | Dropped]:
    suffix = file.suffix.lower()
    if suffix == _PDF:
        yield from _read_pdf(file, name)
    elif suffix in _HTML:
        page = html_text.page(file.read_bytes())
        if isinstance(page, str):
            yield Dropped(name, page)
        else:
            yield Document(name, page.text, title=page.title or file.stem, headings=page.headings)
    elif suffix in _MARKDOWN:
        text, title = markdown.content(_read_text(file), mdx=suffix == ".mdx")
        headings = markdown.headings(text)
        yield Document(name, text, title=title or (headings[0][1] if headings else file.stem), headings=headings)
    else:
        yield Document(name, _read_text(file), title=file.stem)


def _read_pdf(file: Path, name: str) -> Iterator[Document | Dropped]:
    content = pdf.read_pdf(file)
    if isinstance(content, str):
        yield Dropped(name, content)
        return
    for number in content.unreadable_pages:
        yield Dropped(f"{name}, page {number}", pdf.PAGE_NOT_READABLE)
    yield Document(name, content.text, title=content.title or file.stem, headings=content.headings)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{file.absolute()}: not UTF-8 (byte {error.start}). Save the file as UTF-8.") from error


def _listed(suffixes: tuple[str, ...]) -> str:
    return f"{', '.join(suffixes[:-1])} and {suffixes[-1]}"
