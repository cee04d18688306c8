"""Write the table of values in charts/pyrite/README.md from values.yaml's comments; --check says whether it is in step.

Usage: python scripts/chart_values.py [--check]

A row is a key with a `# -- ...` comment above it, as helm-docs reads it. A value without a comment is an error.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).parents[1] / "charts" / "pyrite"
VALUES, PAGE = CHART / "values.yaml", CHART / "README.md"
BEGIN, END = "<!-- values: made from values.yaml by `make docs` -->", "<!-- end of values -->"


class Row(NamedTuple):
    """One value: its dotted name, its default and what it means."""

    name: str
    default: Any
    meaning: str


def rows(text: str) -> list[Row]:
    """The rows that the values file ``text`` describes.

    Raises:
        ValueError: a value has no comment.
    """
    return list(_below(yaml.compose(text, Loader=yaml.SafeLoader), text.splitlines(), yaml.safe_load(text), ()))


def _below(node: Any, lines: list[str], content: Any, path: tuple[str, ...]) -> Iterator[Row]:
    for key, value in node.value:
        here, default = (*path, key.value), content[key.value]
        meaning = _comment(lines, key.start_mark.line)
        if meaning is not None:
            yield Row(".".join(here), default, meaning)
        elif isinstance(value, yaml.MappingNode) and default:
            yield from _below(value, lines, default, here)
        else:
            raise ValueError(f"values.yaml:{key.start_mark.line + 1}: {'.'.join(here)} has no `# -- ` comment")


def _comment(lines: list[str], line: int) -> str | None:
    """The comment right above ``line``, from its `# -- ` on; None where there is none."""
    told: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("# "):
        line -= 1
        told.insert(0, lines[line].lstrip()[2:])
        if told[0].startswith("-- "):
            told[0] = told[0][3:]
            return " ".join(told)
    return None


def table(text: str) -> str:
    """The rows as a Markdown table, in values.yaml's order."""
    lines = ["| value | default | meaning |", "| --- | --- | --- |"]
    for name, default, meaning in rows(text):
        shown = json.dumps(default, ensure_ascii=False).replace("|", "\\|")
        lines.append(f"| `{name}` | `{shown}` | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def main() -> int:
    """Exit code 1 where --check finds the page out of step, 2 where values.yaml lacks a comment."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    try:
        wanted = f"{before}{BEGIN}\n{table(VALUES.read_text(encoding='utf-8'))}\n{END}{after}"
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if "--check" in sys.argv[1:]:
        if page != wanted:
            print("charts/pyrite/README.md is not in step with values.yaml; run `make docs`", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
