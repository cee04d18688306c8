"""The text of HTML: of a fragment, such as a post, or of a page without its navigation."""

import codecs
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

from pyrite.sources.optional import import_library

_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")

#: Elements before and after which there is a blank line, and those before and after which there is a new line.
_BLOCKS = {*_HEADINGS, "p", "pre", "ul", "ol", "dl", "table", "blockquote", "hr", "figure", "details", "fieldset"}
_BLOCKS |= {"section", "article", "main", "header"}
_LINES = {"div", "li", "dt", "dd", "tr", "br", "summary", "figcaption", "caption", "address", "aside", "option"}

#: Elements that hold no text to read.
_NO_TEXT = {"script", "style", "template", "noscript", "head", "svg", "canvas", "object", "iframe", "audio", "video"}
_NO_TEXT |= {"button", "select", "textarea", "dialog"}

#: Navigation, by element, ARIA role, class and id. The classes are those of MkDocs, Docusaurus, Sphinx, MediaWiki and
#: Confluence.
_NAVIGATION = {"nav", "footer"}
_NAVIGATION_ROLES = {"navigation", "search", "banner", "contentinfo", "doc-toc"}
_NAVIGATION_NAMES = {"toc", "toc-macro", "table-of-contents", "toctree-wrapper"}
_NAVIGATION_NAMES |= {
    "breadcrumb",
    "breadcrumbs",
    "pagination",
    "skip-link",
    "mw-editsection",
    "navbox",
    "page-metadata",
}

#: The text of a link to the heading that it is in.
_ANCHORS = {"#", "¶", "§", "🔗", "\u200b"}

#: A page is navigation if at least this share of its characters is in links.
_LINK_SHARE = 0.8

#: Reasons for dropping a page.
NOT_DECODABLE = "HTML file that is neither UTF-8 nor in the encoding that it declares"
NOT_PARSABLE = "HTML file that cannot be parsed"
ONLY_LINKS = "HTML page of links, such as an index"
TOO_LARGE = "HTML file of more than 16 MiB"

_MAX_BYTES = 16 << 20
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Page:
    """The text of a page, its title if it has one, and its headings as (offset in ``text``, heading), ascending."""

    text: str
    title: str
    headings: tuple[tuple[int, str], ...]


def fragment(html: str) -> str:
    """The text of a piece of HTML without a page around it. Code keeps its line breaks and indentation."""
    parser = _FragmentParser()
    parser.feed(_closed(html))
    parser.close()
    return parser.writer.finish()


def page(content: bytes) -> Page | str:
    """The text of a page, or the reason why it has to be dropped.

    The text is that of the page's content: of Confluence's page body, of ``itemprop=articleBody``, of ``main``, of the
    only ``article``, or of the page, whichever is found first. Navigation in it is left out.

    Raises:
        UserError: the library that parses pages is not installed.
    """
    bs4 = import_library("bs4", "beautifulsoup4", "reading HTML files")
    if len(content) > _MAX_BYTES:
        return TOO_LARGE
    html = _decode(content)
    if html is None:
        return NOT_DECODABLE
    try:
        # Not lxml if it is installed: another parser would give other texts on another machine.
        soup = bs4.BeautifulSoup(_closed(html), "html.parser")
    except (bs4.ParserRejectedMarkup, AssertionError):
        return NOT_PARSABLE
    if soup.find(id="title-text") and not soup.find(class_="wiki-content"):  # Confluence's index of a space
        return ONLY_LINKS
    body = _content(soup)
    writer = _Writer()
    links = _write(body, writer, skip_header=body.name in ("body", "[document]"))
    text = writer.finish()
    if links >= _LINK_SHARE * max(1, len(re.sub(r"\s", "", text))):
        return ONLY_LINKS
    return Page(text, _title(soup, body), tuple(writer.headings))


def _decode(content: bytes) -> str | None:
    """``content`` as text by its byte order mark, by the charset that it declares, or as UTF-8; None if it is not."""
    declared = _CHARSET.search(content[:4096])
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif declared and not content.startswith(codecs.BOM_UTF8):
        encoding = declared[1].decode("ascii").lower()
        # As browsers do: pages that declare Latin-1 use Windows' characters, and a page in UTF-16 cannot declare it.
        encoding = "cp1252" if encoding in ("iso-8859-1", "latin1", "latin-1", "us-ascii") else encoding
        encoding = "utf-8-sig" if encoding.startswith(("utf-8", "utf8", "utf-16")) else encoding
    try:
        return content.decode(encoding)
    except (UnicodeError, LookupError):
        return None


def _closed(html: str) -> str:
    """``html`` with "<" escaped where no tag ends. html.parser takes quadratic time for tags without an end."""
    end = html.rfind(">") + 1
    return html[:end] + html[end:].replace("<", "&lt;")


# --- pages ------------------------------------------------------------------------------------------------------------


def _content(soup: Any) -> Any:
    """The element with the content of the page."""
    confluence = soup.find(class_="wiki-content")
    marked = confluence or soup.find(attrs={"itemprop": "articleBody"}) or soup.find("main") or soup.find(role="main")
    if marked:
        return marked
    articles = soup.find_all("article", limit=2)
    return articles[0] if len(articles) == 1 else soup.body or soup


def _title(soup: Any, body: Any) -> str:
    """Confluence's title without the name of the space, the first h1 in or around ``body``, or the title."""
    if confluence := soup.find(id="title-text"):
        return _line(confluence.get_text()).partition(" : ")[2] or _line(confluence.get_text())
    for element in (body.find("h1"), soup.find("h1"), soup.title):
        if element:
            writer = _Writer()
            _write(element, writer, skip_header=False)
            if title := _line(writer.finish() or element.get_text()):
                return title
    return ""


def _write(root: Any, writer: "_Writer", *, skip_header: bool) -> int:
    """Write the text of ``root`` without navigation; return the number of its characters that are in links.

    A loop, because pages nest deeper than Python's stack.
    """
    links, depth_of_links = 0, 0
    todo: list[tuple[Any, bool]] = [(root, False)]
    while todo:
        node, closes = todo.pop()
        name = getattr(node, "name", None)
        if name is None:
            # Comments, doctypes and the like are subclasses of the class of text.
            if type(node).__name__ == "NavigableString":
                writer.text(node)
                links += len(re.sub(r"\s", "", node)) if depth_of_links else 0
        elif closes:
            writer.close(name)
            depth_of_links -= name == "a"
        elif node is root or not (_is_navigation(node) or name in _NO_TEXT or (skip_header and name == "header")):
            writer.open(name)
            depth_of_links += name == "a"
            todo.append((node, True))
            todo.extend((child, False) for child in reversed(node.contents))
    return links


def _is_navigation(node: Any) -> bool:
    if node.name in _NAVIGATION or node.get("role") in _NAVIGATION_ROLES or node.get("aria-hidden") == "true":
        return True
    if node.name == "a" and node.get_text().strip(" \n") in _ANCHORS:
        return True
    names = node.get("class") or ()
    return node.get("id") in _NAVIGATION_NAMES or not _NAVIGATION_NAMES.isdisjoint(names)


# --- text -------------------------------------------------------------------------------------------------------------


class _FragmentParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.writer = _Writer()
        self._skipped: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag in _NO_TEXT:
            self._skipped.append(tag)
        elif not self._skipped:
            self.writer.open(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            if tag == self._skipped[-1]:
                self._skipped.pop()
        elif tag not in _NO_TEXT:
            self.writer.close(tag)

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.writer.text(data)


class _Writer:
    """Writes the text of elements: blank lines between blocks, "- " before list items, " | " between table cells."""

    def __init__(self) -> None:
        self.headings: list[tuple[int, str]] = []
        self._parts: list[str] = []
        self._length = 0
        self._gap = ""  # to write before the next text
        self._marker = ""  # "- " of a list item without text yet
        self._code: list[str] | None = None  # text of the open pre element
        self._cell_is_empty = False
        self._heading: list[str] | None = None  # text of the open heading
        self._heading_start = 0

    def open(self, tag: str) -> None:
        """Begin an element."""
        if tag == "br" and self._code is not None:
            self._code.append("\n")
        elif tag in ("td", "th"):
            self._cell_is_empty = True
        else:
            self._break(tag)
        if tag == "li":
            self._marker = "- "
        elif tag == "pre" and self._code is None:
            self._code = []
        elif tag in _HEADINGS:
            self._heading = []

    def close(self, tag: str) -> None:
        """End an element. Without a beginning, it only ends the line or the paragraph."""
        if tag == "pre" and self._code is not None:
            code, self._code = "".join(self._code), None
            self._append("\n".join(line.rstrip() for line in code.split("\n")).strip("\n"))
        elif tag in ("td", "th"):
            self._cell_is_empty = False
            self._gap = " | "
            return
        elif tag in _HEADINGS and self._heading is not None:
            if heading := _line("".join(self._heading)):
                self.headings.append((self._heading_start, heading))
            self._heading = None
        self._break(tag)

    def text(self, data: str) -> None:
        """Add text. Whitespace outside of code counts as one blank."""
        if self._code is not None:
            self._code.append(data)
            return
        words = " ".join(data.split())
        if data[:1].isspace() or not words:
            self._gap = self._gap or " "
        if words:
            self._append(words)
            self._gap = " " if data[-1:].isspace() else ""

    def finish(self) -> str:
        """The text, without whitespace at its start and end."""
        if self._code is not None:  # pre without an end
            self.close("pre")
        return "".join(self._parts)

    def _break(self, tag: str) -> None:
        # The first paragraph of a cell is on the line of the row.
        if self._cell_is_empty:
            return
        if tag in _BLOCKS:
            self._gap = "\n\n"
        elif tag in _LINES and self._gap != "\n\n":
            self._gap = "\n"

    def _append(self, text: str) -> None:
        if not text.strip():
            return
        before = self._gap if self._parts else ""
        if self._marker:
            before += self._marker
        if self._heading == []:
            self._heading_start = self._length + len(before)
        if self._heading is not None:
            self._heading.append(before + text)
        self._parts += [before, text]
        self._length += len(before) + len(text)
        self._gap = self._marker = ""
        self._cell_is_empty = False


def _line(text: str) -> str:
    return " ".join(text.split())
