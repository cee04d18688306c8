"""Show the progress of a run: a line per finished step and, on a terminal, a bar per running step."""

import time
from collections.abc import Mapping, Sequence
from textwrap import wrap
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pyrite.plan import STAGES, Step, StepState

#: Seconds between two progress lines of a step, if the output is not a terminal.
_LINE_INTERVAL_SECONDS = 15.0


class Display:
    """A Listener for ``executors.local.execute`` that prints to ``console``; use it as a context manager."""

    def __init__(self, console: Console):
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[Step, Any] = {}
        self._counts: dict[Step, tuple[int, int | None, str]] = {}
        self._last_line: dict[Step, float] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def planned(self, states: Sequence[StepState]) -> None:
        done = sum(state.state == "done" for state in states)
        if done:
            self._console.print(f"{done} of {len(states)} steps are already finished; resuming.")
        for state in states:
            if state.stale and state.state == "ready":
                self._console.print(f"[yellow]again[/] {state.step.label}: {escape(state.stale)}")

    def started(self, step: Step) -> None:
        self._tasks[step] = self._bars.add_task(step.label, total=None, unit="")
        self._last_line[step] = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"start {step.label}")

    def event(self, step: Step, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "begin":
                self._counts[step] = (0, event["total"], event["unit"])
                self._bars.reset(self._tasks[step], total=event["total"], unit=event["unit"])
            case "advance":
                done, total, unit = self._counts[step]
                self._counts[step] = (done + event["n"], total, unit)
                self._bars.advance(self._tasks[step], event["n"])
                self._print_line(step)
            case "message":
                self.message(event["text"])

    def message(self, text: str) -> None:
        """Print a message between the lines of steps."""
        self._console.print(f"      {escape(text)}", highlight=False)

    def finished(self, step: Step, manifest: Mapping[str, Any]) -> None:
        self.passed(step, manifest["seconds"], STAGES[step.stage].headline(manifest["summary"]))

    def passed(self, step: Step, seconds: float, text: str = "") -> None:
        """Print that ``step`` is done, with its result ``text``."""
        if step in self._tasks:
            self._bars.remove_task(self._tasks.pop(step))
        line = f"done  {step.label:<29} {seconds:>6.1f} s"
        if len(line) + 2 + len(text) <= self._console.width:
            lines = [f"{line}  {text}"]
        else:
            lines = [line, *wrap(text, self._console.width, initial_indent=" " * 6, subsequent_indent=" " * 6)]
        shown = Text("\n".join(lines), "dim")
        shown.stylize("not dim", 0, len(line))
        shown.stylize("green", 0, len("done"))
        self._console.print(shown, highlight=False)

    def _print_line(self, step: Step) -> None:
        now = time.monotonic()
        if self._console.is_terminal or now - self._last_line[step] < _LINE_INTERVAL_SECONDS:
            return
        self._last_line[step] = now
        done, total, unit = self._counts[step]
        self._console.print(f"      {step.label}: {done:,} of {total:,} {unit}" if total else f"      {done:,} {unit}")
