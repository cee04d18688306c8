"""Judges: what grades (query, passage) pairs. To add one is to add a file and a line here."""

import pyarrow as pa

from pyrite.judges.base import GRADES, Judge, Judgment, Missing, Pair
from pyrite.judges.labels import LabelsJudge
from pyrite.spec import RunSpec

__all__ = ["GRADES", "Judge", "Judgment", "Missing", "Pair", "open_judge"]


def open_judge(spec: RunSpec, queries: pa.Table, passages: pa.Table, qrels: pa.Table) -> Judge:
    """The judge that ``spec.judge.kind`` names, given the tables that prepare wrote."""
    match spec.judge.kind:
        case "labels":
            return LabelsJudge(queries, passages, qrels)
        case "llm":
            from pyrite.judges.llm import LlmJudge

            return LlmJudge.open(spec, queries, passages)
