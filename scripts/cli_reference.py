"""Write docs/cli.md from the commands' own help; with --check, say whether it is in step.

Usage: python scripts/cli_reference.py [--check]
"""

import sys
from pathlib import Path

import click
import typer

from pyrite.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def reference() -> str:
    """The page as Markdown: every verb with its usage, arguments and options."""
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group)
    lines = [
        "# Commands",
        "",
        "Made from the commands' help by `make docs`; `pyrite VERB --help` says the same.",
        "",
    ]
    for name in root.list_commands(click.Context(root)):
        command = root.commands[name]
        context = click.Context(command, info_name=f"pyrite {name}")
        usage = " ".join([f"pyrite {name}", *command.collect_usage_pieces(context)])
        lines += [f"## {name}", "", (command.help or "").strip(), "", f"    {usage}", ""]
        for parameter in command.params:
            text = getattr(parameter, "help", None) or ""
            if isinstance(parameter, click.Option):
                lines.append(f"- `{', '.join(parameter.opts)}`: {text}")
            else:
                lines.append(f"- `{parameter.make_metavar(context)}`: {text}")
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
