"""What a person sees while a run goes: finished steps as lines, running ones as bars; plain lines off a terminal."""

import time
from collections.abc import Mapping, Sequence
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

from pyrite.plan import Step, StepState

_PLAIN_EVERY_SECONDS = 15.0


class Display:
    """A Listener for ``executors.local.execute`` that draws on ``console``; use it as a context manager."""

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
        self._told: dict[Step, float] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def planned(self, states: Sequence[StepState]) -> None:
        done = sum(state.state == "done" for state in states)
        if done:
            self._console.print(f"{done} of {len(states)} steps are already finished; going on from there.")
        for state in states:
            if state.stale and state.state == "ready":
                self._console.print(f"[yellow]again[/] {state.step.label}: {escape(state.stale)}")

    def started(self, step: Step) -> None:
        self._tasks[step] = self._bars.add_task(step.label, total=None, unit="")
        self._told[step] = time.monotonic()
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
                self._tell_plainly(step)
            case "message":
                self.message(event["text"])

    def message(self, text: str) -> None:
        """A sentence that a person should read, among the lines of steps."""
        self._console.print(f"      {escape(text)}", highlight=False)

    def finished(self, step: Step, manifest: Mapping[str, Any]) -> None:
        self.passed(step, manifest["seconds"], headline(step.stage, manifest["summary"]))

    def passed(self, step: Step, seconds: float, text: str = "") -> None:
        """A step is done, with its result in a few words."""
        if step in self._tasks:
            self._bars.remove_task(self._tasks.pop(step))
        self._console.print(
            f"[green]done[/]  {step.label:<29} {seconds:>6.1f} s  [dim]{escape(text)}[/]",
            highlight=False,
            no_wrap=True,
            overflow="ellipsis",
        )

    def _tell_plainly(self, step: Step) -> None:
        now = time.monotonic()
        if self._console.is_terminal or now - self._told[step] < _PLAIN_EVERY_SECONDS:
            return
        self._told[step] = now
        done, total, unit = self._counts[step]
        self._console.print(f"      {step.label}: {done:,} of {total:,} {unit}" if total else f"      {done:,} {unit}")


def headline(stage: str, summary: Mapping[str, Any]) -> str:
    """A step's result in a few words, from its manifest's summary."""
    match stage:
        case "prepare":
            queries = sum(summary["queries"].values())
            return f"{summary['passages']:,} passages, {queries:,} queries"
        case "generate":
            dropped = sum(summary["dropped"].values())
            return f"{summary['questions']:,} questions of {summary['requested']:,} asked for, {dropped:,} dropped"
        case "retrieve":
            return f"{summary['candidates']:,} candidates"
        case "judge":
            notes = [
                f"{summary[name]:,} {words}"
                for name, words in (("cached", "known before"), ("skipped", "skipped"), ("missing", "missing"))
                if summary[name]
            ]
            return ", ".join([f"{summary['judged']:,} pairs judged", *notes])
        case "mine":
            return f"{summary['examples']:,} examples; new: {summary['hard']:,} hard, {summary['easy']:,} easy"
        case "finetune":
            return f"{summary['steps']:,} training steps, loss {summary['loss']:.3f}"
        case "validate":
            return "MRR@5 " + ", ".join(
                f"{m['mrr@5']:.3f}" + (f" at {name.partition('@')[2]}" if "@" in name else "")
                for name, m in summary["val"].items()
            )
        case "evaluate":
            return f"chosen: {summary['chosen']}"
    return ""
