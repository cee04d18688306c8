"""A probe as one HTML page that needs nothing else: no network, no script, no file beside it."""

from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from pyrite.report import formatting

#: Sub-heading of each group of sample judgments.
_HEADINGS = {
    "known, graded low": "Known to be relevant, and graded 1 or 2",
    "random, graded high": "Drawn at random, and graded 3 or 4",
    "4": "Graded 4: answers fully",
    "3": "Graded 3: answers in part",
    "2": "Graded 2: on the topic, no answer",
    "1": "Graded 1: not relevant",
}


def render(content: dict[str, Any]) -> str:
    """The page for ``content`` (as ``pyrite.judge_eval.probe.probe`` makes it): the same bytes for the same content."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": lambda value, digits=2: formatting.minus(formatting.number(value, digits)),
        "share": lambda share: formatting.percent(share, sign=False),
        "count": lambda value: f"{value:,.0f}",
        "rate": formatting.rate,
        "sentence": lambda text: text[0].upper() + text[1:] + ".",
        "when": formatting.when,
        "plural": formatting.plural,
    }
    return environment.from_string(_resource("probe.html.j2")).render(
        probe=content,
        css=Markup(_resource("page.css")),
        headings=_HEADINGS,
        failed=[check for check in content["checks"] if not check["passed"]],
    )


def _resource(name: str) -> str:
    return (files("pyrite.report") / name).read_text(encoding="utf-8")
