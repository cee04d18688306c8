"""Write docs/cli.md from the commands' own help; with --check, say whether it is in step.

Usage: python scripts/cli_reference.py [--check]
"""

import inspect
import sys
from pathlib import Path
from typing import Any

import typer

from pyrite.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def reference() -> str:
    """The page as Markdown: every verb with its usage, arguments and options."""
    root: Any = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        "Generated from the commands' help by `make docs`; `pyrite VERB --help` says the same.",
        "",
    ]
    for name, command in root.commands.items():
        context = command.make_context(name, [], resilient_parsing=True)
        usage = " ".join([f"pyrite {name}", *command.collect_usage_pieces(context)])
        lines += [f"## {name}", "", inspect.cleandoc(command.help or ""), "", f"    {usage}", ""]
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                label = parameter.metavar or parameter.name.upper()
            else:
                label = ", ".join(parameter.opts)
            lines.append(f"- `{label}`: {getattr(parameter, 'help', None) or ''}")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Exit code 1 where --check finds the page out of step."""
    text = reference()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            print("docs/cli.md is not in step with the commands; run `make docs`", file=sys.stderr)
            return 1
        return 0
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
