"""Preflight checks: what is missing before a run, and how to fix it.

Each module reads answers from the machine, AWS or Kubernetes, and judges them with pure functions.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

T = TypeVar("T")

Status = Literal["ok", "warn", "fail", "skip"]


class Check(NamedTuple):
    """The result of one check. ``fix``: what to do, unless it is ok."""

    name: str
    status: Status
    found: str
    fix: str = ""


class Unreadable(str):
    """The reason why an answer could not be read."""

    __slots__ = ()


def evaluate(name: str, answer: T | Unreadable, check: Callable[[T], Check], fix: str) -> Check:
    """Apply ``check``; an answer that could not be read is a warning, with ``fix``."""
    if isinstance(answer, Unreadable):
        return Check(name, "warn", f"not checked: {answer}", fix)
    return check(answer)
