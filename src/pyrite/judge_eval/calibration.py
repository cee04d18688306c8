"""Set a judge beside people: it grades the pairs that they graded, and its agreement with them is measured."""

import math
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
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
from pyrite.judge_eval.asking import ask
from pyrite.judge_eval.human_grades import GradedFile, Row, Scale
from pyrite.judge_eval.prepared import prepared_context
from pyrite.judges import Judgment, Pair, open_judge
from pyrite.judges.base import RELEVANT
from pyrite.judges.cache import JudgmentCache
from pyrite.progress import NullProgress, Progress
from pyrite.stages.inputs import read_passages, read_qrels, read_queries


@dataclass(frozen=True)
class Item:
    """A graded pair: what to ask of it, and the true grade from 1 to 4.

    A document of several passages is asked about each of them, and counts as its best one does (MaxP: Dai and Callan,
    SIGIR 2019).
    """

    query_id: str
    passage_ids: tuple[str, ...]
    truth: int


@dataclass(frozen=True)
class Tables:
    """What a judge is opened on; the schemas are those of ``tables``."""

    queries: pa.Table
    passages: pa.Table
    qrels: pa.Table


@dataclass(frozen=True)
class Graded:
    """A graded file, ready to be judged. ``unknown`` counts its rows that name nothing in the tables."""

    items: list[Item]
    scale: Scale
    tables: Tables
    unknown: int


def prepared_tables(run: Run) -> Tables:
    """The tables of a run that is prepared. Raises UserError where it is not."""
    ctx = prepared_context(run, NullProgress())
    return Tables(read_queries(ctx), read_passages(ctx), read_qrels(ctx))


def of_texts(file: GradedFile, scale: Scale) -> Graded:
    """The pairs of a file that holds texts, in small tables of their own, with the ids that a run would give them."""
    items = [Item(query_id(row.query), (passage_id(row.passage),), scale.to_judge(row.grade)) for row in file.rows]
    return Graded(items, scale, _text_tables(file.rows), 0)


def of_ids(file: GradedFile, scale: Scale, prepared: Tables) -> Graded:
    """The pairs of a file that holds ids: those of the ``prepared`` tables, or those that the source gave.

    Raises:
        UserError: no row names a query and a document of the tables.
    """
    items = _known(file.rows, scale, prepared)
    if not items:
        first = file.rows[0]
        raise UserError(
            f"{first.where}: neither query {first.query!r} with document {first.passage!r} nor any other row names a "
            "query and a document of this run: give its own query and passage ids, or those of its source."
        )
    return Graded(items, scale, prepared, len(file.rows) - len(items))


def calibrate(run: Run, graded: Graded, progress: Progress) -> dict[str, Any]:
    """Have every pair graded by the run's judge, and measure how far it agrees.

    What is kept of the pairs is not asked again, and what is answered of them is kept.

    Returns:
        The content of the JSON file: plain values, None where something is undefined.

    Raises:
        UserError: the judge's settings or server are wrong in a way that asking again cannot mend.
        PyriteError: the judge grades nothing.
    """
    spec = run.spec
    judge = open_judge(spec, graded.tables.queries, graded.tables.passages, graded.tables.qrels)
    pairs = sorted({Pair(item.query_id, passage) for item in graded.items for passage in item.passage_ids})
    kept = None
    if judge.shared:
        kept = JudgmentCache(run.store, judge.fingerprint, f"{spec.name}/calibrate", uuid.uuid4().hex[:12])
    known = _known_judgments(kept.read({pair.query_id for pair in pairs}), set(pairs)) if kept else {}
    answers = ask(judge, [pair for pair in pairs if pair not in known], spec.judge.max_missing, progress, kept)
    return {
        "pyrite": __version__,
        "run": spec.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "judge": {
            "kind": spec.judge.kind,
            "model": spec.judge.model,
            "prompt": spec.judge.prompt,
            "fingerprint": judge.fingerprint,
            **judge.stats,
        },
        "scale": {"name": str(graded.scale), "read_as": graded.scale.words},
        "rows_unknown": graded.unknown,
        "rows_of_several_passages": sum(len(item.passage_ids) > 1 for item in graded.items),
        "known": len(known),
        "missing": len(answers.missing),
        "pairs_per_second": round(len(answers.judgments) / max(answers.seconds, 1e-6), 3),
        **measure(graded.items, known | {judgment.pair: judgment for judgment in answers.judgments}, spec.seed),
    }


def measure(items: Sequence[Item], judgments: Mapping[Pair, Judgment], seed: int) -> dict[str, Any]:
    """Agreement over the items of which every passage was graded."""
    rows = []
    for item in items:
        given = [judgments.get(Pair(item.query_id, passage)) for passage in item.passage_ids]
        if all(given):
            best = max((judgment for judgment in given if judgment), key=lambda judgment: judgment.expected)
            rows.append((item.query_id, item.truth, best.grade, best.expected))
    if not rows:
        raise UserError("no row of the graded file has all its passages graded; look at the judge's server.")
    clusters = [row[0] for row in rows]
    truth, judged = (np.array([row[i] for row in rows], dtype=np.int64) for i in (1, 2))
    expected = np.array([row[3] for row in rows], dtype=np.float64)
    relevant = truth >= RELEVANT
    area = agreement.auc(expected, relevant, clusters)
    bins = agreement.reliability(expected, truth)
    recalibration = agreement.recalibrate(expected, judged, truth, clusters, seed)
    content: dict[str, Any] = {
        "n": len(rows),
        "queries": len(set(clusters)),
        "kappa": agreement.quadratic_kappa(truth, judged),
        "kappa_interval": agreement.kappa_interval(truth, judged, clusters, seed),
        "kappa_relevant": agreement.quadratic_kappa(relevant.astype(np.int64), (judged >= RELEVANT).astype(np.int64)),
        "spearman": agreement.spearman(expected, truth.astype(np.float64)),
        "auc": area.value,
        "auc_interval": area.interval,
        "bias": float(np.mean(expected - truth)),
        "confusion": agreement.confusion(truth, judged),
        "reliability": [one._asdict() for one in bins],
        "calibration_error": agreement.calibration_error(bins),
        "recalibration": recalibration,
    }
    plain: dict[str, Any] = _plain(content)
    return plain


def _known_judgments(table: pa.Table, wanted: Collection[Pair]) -> dict[Pair, Judgment]:
    found = (Judgment.from_row(row) for row in table.to_pylist())
    return {judgment.pair: judgment for judgment in found if judgment.pair in wanted}


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it: dataclasses as objects, numbers rounded, None for what is undefined."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, agreement.Recalibration | Interval):
        return _plain(asdict(value))
    return value


def _known(rows: Iterable[Row], scale: Scale, prepared: Tables) -> list[Item]:
    """The rows whose ids the tables know: their own, or those that the source gave."""
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
    nothing = {"topic": "", "type": "", "split": "test", "question_ids": []}
    return Tables(
        pa.Table.from_pylist(
            [{"query_id": key, "text": text, **nothing} for key, text in queries.items()], tables.QUERIES
        ),
        pa.Table.from_pylist(
            [
                {"passage_id": key, "text": text, "title": "", "split": "test", "parents": []}
                for key, text in passages.items()
            ],
            tables.PASSAGES,
        ),
        tables.QRELS.empty_table(),
    )
