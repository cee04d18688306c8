"""Judges: what grades (query, chunk) pairs. To add one is to add a file and a line here."""

import pyarrow as pa

from pyrite.judges.base import Judge, Judgment, Pair
from pyrite.judges.labels import LabelsJudge
from pyrite.spec import JudgeSpec

__all__ = ["Judge", "Judgment", "Pair", "open_judge"]


def open_judge(spec: JudgeSpec, queries: pa.Table, chunks: pa.Table, qrels: pa.Table) -> Judge:
    """The judge that ``spec.kind`` names, given the tables that prepare wrote."""
    match spec.kind:
        case "labels":
            return LabelsJudge(queries, chunks, qrels)
