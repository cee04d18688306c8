"""The headings of a Markdown text."""

import re

_FRONT_MATTER = re.compile(r"\A---[^\S\n]*\n.*?^(?:---|\.\.\.)[^\S\n]*$", re.DOTALL | re.MULTILINE)
_FENCED_CODE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*[^\S\n]*$|\Z)", re.DOTALL | re.MULTILINE)

#: "# Heading" (ATX), or a line that is underlined with = or - and follows a blank line (setext).
_HEADING = re.compile(
    r"^ {0,3}#{1,6}[^\S\n]+(?P<atx>[^\n]*?)(?:[^\S\n]+#+)?[^\S\n]*$"
    r"|(?:\A|(?<=\n\n))(?P<setext>[^\s>*+-][^\n]*)\n {0,3}(?:=+|-{2,})[^\S\n]*$",
    re.MULTILINE,
)
_LINK = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
_ATTRIBUTES = re.compile(r"\s*\{[#.:][^}]*\}\s*$")
_MARKUP = re.compile(r"\*+|`+|~~|(?<!\w)_+|_+(?!\w)")


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
