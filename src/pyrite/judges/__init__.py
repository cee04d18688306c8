"""Judges grade (query, passage) pairs.

To add a judge, add its settings to ``pyrite.spec.JudgeSpec``, and a file ``judges/<kind>.py`` with a subclass of
``Judge`` and ``@register("<kind>")``. The file is imported on first use.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TypeVar

import pyarrow as pa

from pyrite.judges.base import GRADES, Judge, Judgment, Missing, Pair
from pyrite.spec import RunSpec

__all__ = ["GRADES", "Judge", "Judgment", "Missing", "Pair", "external", "fingerprint", "open_judge", "register"]

_JUDGES: dict[str, type[Judge]] = {}

J = TypeVar("J", bound=type[Judge])


def register(kind: str) -> Callable[[J], J]:
    """Class decorator: register the judge for runs whose ``judge.kind`` is ``kind``."""

    def add(judge: J) -> J:
        _JUDGES[kind] = judge
        return judge

    return add


def open_judge(spec: RunSpec, queries: pa.Table, passages: pa.Table, qrels: pa.Table) -> Judge:
    """Open the run's judge for the tables that prepare wrote. Raises UserError if its settings are wrong."""
    return _judge(spec).open(spec, queries, passages, qrels)


def fingerprint(spec: RunSpec) -> str:
    """The fingerprint of the run's judge, without opening it."""
    return _judge(spec).fingerprint_of(spec)


def external(spec: RunSpec) -> Mapping[str, Callable[[], str]]:
    """Digests of the files outside the store that the run's judgments depend on, by name."""
    return _judge(spec).external(spec)


def _judge(spec: RunSpec) -> type[Judge]:
    kind = spec.judge.kind
    if kind not in _JUDGES:
        import_module(f"pyrite.judges.{kind}")
    return _JUDGES[kind]
