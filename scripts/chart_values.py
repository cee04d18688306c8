"""Generate the values table in charts/pyrite/README.md from the comments in values.yaml.

Usage: python scripts/chart_values.py [--check]

With --check, only verify that the table is up to date. Each key with a `# -- ...` comment (helm-docs syntax) becomes a
row. A value without a comment is an error.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).parents[1] / "charts" / "pyrite"
VALUES, PAGE = CHART / "values.yaml", CHART / "README.md"
BEGIN, END = "<!-- values: generated from values.yaml by `make docs` -->", "<!-- end of values -->"


class Row(NamedTuple):
    """One row of the table; ``name`` is the dotted key."""

    name: str
    default: Any
    description: str


def rows(text: str) -> list[Row]:
    """Parse the rows from the values file ``text``.

    Raises:
        ValueError: a value has no comment.
    """
    return list(_rows_below(yaml.compose(text, Loader=yaml.SafeLoader), text.splitlines(), yaml.safe_load(text), ()))


def _rows_below(node: Any, lines: list[str], content: Any, path: tuple[str, ...]) -> Iterator[Row]:
    for key, value in node.value:
        key_path, default = (*path, key.value), content[key.value]
        description = _description(lines, key.start_mark.line)
        if description is not None:
            yield Row(".".join(key_path), default, description)
        elif isinstance(value, yaml.MappingNode) and default:
            yield from _rows_below(value, lines, default, key_path)
        else:
            raise ValueError(f"values.yaml:{key.start_mark.line + 1}: {'.'.join(key_path)} has no `# -- ` comment")


def _description(lines: list[str], line: int) -> str | None:
    """Return the `# -- ` comment directly above ``line``, or None."""
    comment: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("# "):
        line -= 1
        comment.insert(0, lines[line].lstrip()[2:])
        if comment[0].startswith("-- "):
            comment[0] = comment[0][3:]
            return " ".join(comment)
    return None


def table(text: str) -> str:
    """Return the rows as a Markdown table, in the order of values.yaml."""
    lines = ["| value | default | description |", "| --- | --- | --- |"]
    for name, default, description in rows(text):
        default_text = json.dumps(default, ensure_ascii=False).replace("|", "\\|")
        lines.append(f"| `{name}` | `{default_text}` | {description.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def main() -> int:
    """Return 1 if --check finds the page outdated, 2 if values.yaml lacks a comment."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    try:
        expected = f"{before}{BEGIN}\n{table(VALUES.read_text(encoding='utf-8'))}\n{END}{after}"
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if "--check" in sys.argv[1:]:
        if page != expected:
            print("charts/pyrite/README.md is outdated: it differs from values.yaml. Run `make docs`.", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(expected, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
