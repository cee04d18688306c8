"""Calibration: the judge grades pairs with human grades, and the agreement is measured."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pyrite import __version__, tables
from pyrite.errors import UserError
from pyrite.evaluation import agreement
from pyrite.evaluation.significance import Interval
from pyrite.executors.step import Run
from pyrite.identity import passage_id, query_id
from pyrite.judge_eval.common import judge_pairs, judge_summary, prepared_context
from pyrite.judge_eval.human_grades import GradedFile, Row, Scale
from pyrite.judges import Judgment, Pair, open_judge
from pyrite.judges.base import RELEVANT, short
from pyrite.judges.calibration import final
from pyrite.progress import NullProgress, Progress
from pyrite.stages.inputs import read_passages, read_qrels, read_queries


@dataclass(frozen=True)
class Item:
    """A query and a document, with the human grade from 1 to 4 as ``truth``.

    A document of several passages counts as its best passage (MaxP: Dai and Callan, SIGIR 2019).
    """

    query_id: str
    passage_ids: tuple[str, ...]
    truth: int


@dataclass(frozen=True)
class Tables:
    """The tables that a judge is opened with; schemas as in ``pyrite.tables``."""

    queries: pa.Table
    passages: pa.Table
    qrels: pa.Table


@dataclass(frozen=True)
class CalibrationSet:
    """A graded file, ready to be judged. ``unknown``: number of rows whose ids are not in the tables."""

    items: list[Item]
    scale: Scale
    tables: Tables
    unknown: int

    @property
    def pairs(self) -> set[Pair]:
        """The pairs to judge."""
        return {Pair(item.query_id, passage) for item in self.items for passage in item.passage_ids}


def prepared_tables(run: Run) -> Tables:
    """The tables of a prepared run. Raises UserError if it is not prepared."""
    ctx = prepared_context(run, NullProgress())
    return Tables(read_queries(ctx), read_passages(ctx), read_qrels(ctx))


def graded_texts(file: GradedFile, scale: Scale) -> CalibrationSet:
    """The pairs of a file with texts. They get tables of their own; ids are computed as in a run."""
    items = [Item(query_id(row.query), (passage_id(row.passage),), scale.to_judge(row.grade)) for row in file.rows]
    return CalibrationSet(items, scale, _text_tables(file.rows), 0)


def graded_ids(file: GradedFile, scale: Scale, prepared: Tables) -> CalibrationSet:
    """The pairs of a file with ids, either those of the ``prepared`` tables or those of the source.

    Raises:
        UserError: no row's ids are in the tables.
    """
    items = _find_items(file.rows, scale, prepared)
    if not items:
        first = file.rows[0]
        raise UserError(
            f"{first.where}: query {first.query!r} with document {first.passage!r} is not in this run, and neither is "
            "any other row. Use query and passage ids of the run or of its source."
        )
    return CalibrationSet(items, scale, prepared, len(file.rows) - len(items))


def calibrate(run: Run, graded: CalibrationSet, progress: Progress) -> dict[str, Any]:
    """Grade every pair with the run's judge and measure the agreement. Cached judgments are used.

    The agreement is that of the judge as the run uses it, with judge.calibration if it is set. A new calibration is
    fitted on what the judge itself gives.

    Returns:
        The content of the JSON file. Undefined values are None.

    Raises:
        UserError: the judge's settings or server are wrong, and a retry cannot help.
        PyriteError: the judge grades nothing, or leaves too many pairs ungraded.
    """
    spec = run.spec
    judge = open_judge(spec.main_judge, graded.tables.queries, graded.tables.passages, graded.tables.qrels)
    judged = judge_pairs(run, judge, graded.pairs, progress)
    judgments = judged.judgments
    if judge.calibration:
        judgments = {pair: final(judge, judgment) for pair, judgment in judgments.items()}
    return {
        "pyrite": __version__,
        "run": spec.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "judge": judge_summary(spec.main_judge.spec, judge),
        "scale": {"name": str(graded.scale), "read_as": graded.scale.description},
        "rows_unknown": graded.unknown,
        "rows_of_several_passages": sum(len(item.passage_ids) > 1 for item in graded.items),
        "known": judged.cached,
        "missing": judged.missing,
        "pairs_per_second": judged.pairs_per_second,
        **measure(graded.items, judgments, spec.seed),
    }


def measure(items: Sequence[Item], judgments: Mapping[Pair, Judgment], seed: int) -> dict[str, Any]:
    """The agreement over the items whose passages are all graded. Raises UserError if there is none."""
    rows = []
    for item in items:
        if best := best_judgment(item, judgments):
            rows.append((item.query_id, item.truth, best.grade, best.expected, best.raw))
    if not rows:
        raise UserError("no row of the graded file has all its passages graded. Check the judge's server.")
    clusters = [row[0] for row in rows]
    truth, judged = (np.array([row[i] for row in rows], dtype=np.int64) for i in (1, 2))
    # Fresh values are as precise as cached ones.
    expected, raw = (np.array([row[i] for row in rows], dtype=np.float32).astype(np.float64) for i in (3, 4))
    relevant = truth >= RELEVANT
    auc = agreement.auc(expected, relevant, clusters)
    bins = agreement.reliability(expected, truth)
    recalibration = agreement.recalibrate(raw, judged, truth, clusters, seed)
    content: dict[str, Any] = {
        "n": len(rows),
        "queries": len(set(clusters)),
        "kappa": agreement.quadratic_kappa(truth, judged),
        "kappa_interval": agreement.kappa_interval(truth, judged, clusters, seed),
        "kappa_relevant": agreement.quadratic_kappa(relevant.astype(np.int64), (judged >= RELEVANT).astype(np.int64)),
        "spearman": agreement.spearman(expected, truth.astype(np.float64)),
        "auc": auc.value,
        "auc_interval": auc.interval,
        "bias": float(np.mean(expected - truth)),
        "confusion": agreement.confusion(truth, judged),
        "reliability": [each._asdict() for each in bins],
        "calibration_error": agreement.calibration_error(bins),
        "raw_range": [float(raw.min()), float(raw.max())],
        "recalibration": recalibration,
    }
    return {**plain(content), "calibration": _applicable(recalibration)}


def best_judgment(item: Item, judgments: Mapping[Pair, Judgment]) -> Judgment | None:
    """The judgment of the item's best passage; None unless all its passages are graded."""
    found = [judgments.get(Pair(item.query_id, passage)) for passage in item.passage_ids]
    graded = [judgment for judgment in found if judgment]
    return max(graded, key=lambda judgment: judgment.raw) if len(graded) == len(found) else None


def calibration_key(run: Run, graded_file: str, judge: Mapping[str, Any]) -> str:
    """The key of the result for a graded file and a judge (``judge_summary``): each judge has a file of its own."""
    names = graded_file, short(judge["fingerprint"]), judge.get("calibration", "")[:12]
    return f"{run.prefix}/calibration/{re.sub(r'[^A-Za-z0-9._-]+', '-', '-'.join(filter(None, names)))}.json"


def plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` as JSON: dataclasses as objects, rounded numbers, None instead of infinity and NaN."""
    found: dict[str, Any] = _plain(content)
    return found


def _applicable(found: agreement.Recalibration | None) -> dict[str, Any] | None:
    """What ``judge.calibration`` applies, not rounded: the scores of some rerankers are all near 0."""
    return {"x": found.expected.x, "y": found.expected.y, "cut_points": found.cut_points} if found else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, agreement.Recalibration | Interval):
        return _plain({name: inner for name, inner in asdict(value).items() if name != "expected"})
    return value


def _find_items(rows: Iterable[Row], scale: Scale, prepared: Tables) -> list[Item]:
    """The rows whose ids are in the tables, as ids of the run or of its source."""
    queries: dict[str, str] = {}
    for row in prepared.queries.select(["query_id", "question_ids"]).to_pylist():
        queries |= dict.fromkeys([row["query_id"], *row["question_ids"]], row["query_id"])
    passages: dict[str, list[str]] = defaultdict(list)
    for row in prepared.passages.select(["passage_id", "parents"]).to_pylist():
        for name in dict.fromkeys([row["passage_id"], *(parent["document_id"] for parent in row["parents"])]):
            passages[name].append(row["passage_id"])
    return [
        Item(queries[row.query], tuple(passages[row.passage]), scale.to_judge(row.grade))
        for row in rows
        if row.query in queries and row.passage in passages
    ]


def _text_tables(rows: Iterable[Row]) -> Tables:
    queries = {query_id(row.query): row.query for row in rows}
    passages = {passage_id(row.passage): row.passage for row in rows}
    defaults = {"topic": "", "type": "", "split": "test", "question_ids": []}
    return Tables(
        pa.Table.from_pylist(
            [{"query_id": key, "text": text, **defaults} for key, text in queries.items()], tables.QUERIES
        ),
        pa.Table.from_pylist(
            [
                {"passage_id": key, "text": text, "title": "", "context": "", "split": "test", "parents": []}
                for key, text in passages.items()
            ],
            tables.PASSAGES,
        ),
        tables.QRELS.empty_table(),
    )
