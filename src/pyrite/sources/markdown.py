"""The text, title and headings of a Markdown file: front matter, JSX of .mdx files and comments are left out."""

import re
from typing import Any

import yaml

_FRONT_MATTER = re.compile(r"\A---[^\S\n]*\n.*?^(?:---|\.\.\.)[^\S\n]*$", re.DOTALL | re.MULTILINE)
_FENCED_CODE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*[^\S\n]*$|\Z)", re.DOTALL | re.MULTILINE)
_CODE = re.compile(rf"{_FENCED_CODE.pattern}|`+[^`\n]+`+", re.DOTALL | re.MULTILINE)

#: "# Heading" (ATX), or a line that is underlined with = or - and follows a blank line (setext).
_HEADING = re.compile(
    r"^ {0,3}#{1,6}[^\S\n]+(?P<atx>[^\n]*?)(?:[^\S\n]+#+)?[^\S\n]*$"
    r"|(?:\A|(?<=\n\n))(?P<setext>[^\s>*+-][^\n]*)\n {0,3}(?:=+|-{2,})[^\S\n]*$",
    re.MULTILINE,
)
_LINK = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
_ATTRIBUTES = re.compile(r"\s*\{[#.:][^}]*\}\s*$")

#: Lines that only mean something to MkDocs and Docusaurus: a table of contents, and the fences of an admonition.
_DIRECTIVE = re.compile(r"^[^\S\n]*(?:\[TOC\]|\[\[_TOC_\]\]|:{3,}[^\S\n]*(?:\w+[^\S\n]*)?)$", re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->|\{/\*.*?\*/\}", re.DOTALL)
#: An import or export of an .mdx file, up to the blank line after it.
_ESM = re.compile(
    r"^(?:import\s(?=[^\n]*['\"{*])|export\s+(?=(?:default|const|let|var|function|class|async)\b|[{*]))(?:[^\n]+\n?)+",
    re.MULTILINE,
)
#: The tag of a component of an .mdx file, such as <TabItem value="a" items={[{b: 1}]}>, or of a fragment.
_BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_COMPONENT = re.compile(rf"</?[A-Z][\w.]*(?:\s(?:[^<>\"'{{}}]|\"[^\"]*\"|'[^']*'|{_BRACES})*)?/?>|</?>")
_MARKUP = re.compile(r"\*+|`+|~~|(?<!\w)_+|_+(?!\w)")


def content(text: str, *, mdx: bool) -> tuple[str, str]:
    """The text of a file without front matter, directives and comments, and the title in the front matter, or "".

    ``mdx``: also without imports, exports and the tags of components. The text in components is left, and so is code.
    """
    title = ""
    if front_matter := _FRONT_MATTER.match(text):
        title = _front_matter_title(front_matter[0])
        text = text[front_matter.end() :]
    patterns = (_COMMENT, _DIRECTIVE, _ESM, _COMPONENT) if mdx else (_COMMENT, _DIRECTIVE)
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [_without(patterns, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _without(patterns, text[end:])]).strip(), title


def _front_matter_title(front_matter: str) -> str:
    try:
        settings: Any = yaml.safe_load(front_matter.strip().strip("-.\n"))
    except (yaml.YAMLError, ValueError, RecursionError):
        return ""
    title = settings.get("title") if isinstance(settings, dict) else None
    return " ".join(title.split()) if isinstance(title, str) else ""


def _without(patterns: tuple[re.Pattern[str], ...], text: str) -> str:
    for pattern in patterns:
        text = pattern.sub("", text)
    return text


def headings(text: str) -> tuple[tuple[int, str], ...]:
    """(offset, text without markup) of each heading, in order. Front matter and code blocks have none."""
    found = []
    for match in _HEADING.finditer(_blank_out(text)):
        group = "atx" if match["atx"] is not None else "setext"
        if heading := _plain(text[slice(*match.span(group))]):
            found.append((match.start(), heading))
    return tuple(found)


def _blank_out(text: str) -> str:
    """``text`` with front matter and code blocks as blanks, at the same offsets."""
    for pattern in (_FRONT_MATTER, _FENCED_CODE):
        text = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    return text


def _plain(heading: str) -> str:
    return " ".join(_MARKUP.sub("", _LINK.sub(r"\1", _ATTRIBUTES.sub("", heading))).split())
