"""The lines of finished steps."""

from io import StringIO

from rich.console import Console

from pyrite.cli.display import Display
from pyrite.plan import Step


def test_long_headlines_wrap_and_lose_no_word() -> None:
    out = StringIO()
    display = Display(Console(file=out, width=80))
    text = "1,234 pairs judged, 12,345 by the first judge, 1,234 cached, 12,345 skipped, [5] missing"
    display.passed(Step("judge", 1, 2), 12.3, text)
    display.passed(Step("mine", 1), 1.0, "9 examples")
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines[1:-1]).split()) == text
    assert lines[-1] == "done  mine, iteration 1                1.0 s  9 examples"
