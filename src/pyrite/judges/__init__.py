"""Judges grade (query, passage) pairs.

To add a judge, add its settings to ``pyrite.spec.JudgeSpec``, and a file ``judges/<kind>.py`` with a subclass of
``Judge`` and ``@register("<kind>")``. The file is imported on first use.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TypeVar

import pyarrow as pa

from pyrite.judges.base import GRADES, Judge, Judgment, Missing, Pair
from pyrite.judges.calibration import calibration_of
from pyrite.spec import ConfiguredJudge, RunSpec

__all__ = [
    "GRADES",
    "Judge",
    "Judgment",
    "Missing",
    "Pair",
    "external",
    "fingerprint",
    "open_judge",
    "open_without_texts",
    "register",
    "requests_per_pair",
]

_JUDGES: dict[str, type[Judge]] = {}

J = TypeVar("J", bound=type[Judge])


def register(kind: str) -> Callable[[J], J]:
    """Class decorator: register the judge for runs whose ``judge.kind`` is ``kind``."""

    def add(judge: J) -> J:
        _JUDGES[kind] = judge
        return judge

    return add


def open_judge(judge: ConfiguredJudge, queries: pa.Table, passages: pa.Table, qrels: pa.Table) -> Judge:
    """Open a judge for the tables that prepare wrote. Raises UserError if its settings are wrong."""
    opened = open_without_texts(judge)
    opened.load_key(queries, passages, qrels)
    opened.load(queries, passages)
    return opened


def open_without_texts(judge: ConfiguredJudge) -> Judge:
    """Open a judge. Before it grades, call ``load_key`` and ``load``. Raises as ``open_judge`` does."""
    opened = _class_of(judge).open(judge)
    opened.section = judge.section
    opened.calibration = calibration_of(judge, opened.fingerprint)
    return opened


def fingerprint(judge: ConfiguredJudge) -> str:
    """The fingerprint of a judge, without opening it. It does not cover the calibration."""
    return _class_of(judge).fingerprint_of(judge)


def external(spec: RunSpec) -> Mapping[str, Callable[[], str]]:
    """Digests of the files outside the store that the judgments of the run's judges depend on, by name.

    Names of the first judge of a cascade start with "first_", and those of evaluate.judge with "evaluate_".
    """
    judges = {"": spec.main_judge, "first_": spec.first_judge, "evaluate_": spec.evaluation_judge}
    return {
        f"{prefix}{name}": digest
        for prefix, judge in judges.items()
        if judge
        for name, digest in _external(judge).items()
    }


def _external(judge: ConfiguredJudge) -> Mapping[str, Callable[[], str]]:
    def digest() -> str:
        calibration = calibration_of(judge, fingerprint(judge))
        return calibration.digest if calibration else ""

    calibration = {"calibration": digest} if getattr(judge.spec, "calibration", None) else {}
    return {**_class_of(judge).external(judge), **calibration}


def requests_per_pair(judge: ConfiguredJudge) -> int:
    """Number of requests to a judge's server per pair, without retries."""
    return _class_of(judge).requests_per_pair(judge)


def _class_of(judge: ConfiguredJudge) -> type[Judge]:
    kind = judge.spec.kind
    if kind not in _JUDGES:
        import_module(f"pyrite.judges.{kind}")
    return _JUDGES[kind]
