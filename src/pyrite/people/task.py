"""A grading task: the pairs of a finished run to grade, with their texts, and the gain that the grades correct."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from pyrite import __version__, tables
from pyrite.errors import UserError
from pyrite.evaluation import ppi
from pyrite.evaluation.ppi import Values
from pyrite.executors.step import Run
from pyrite.judges.base import RELEVANT
from pyrite.people.sampling import STRATA, Key, Population, graded_sample, in_order, population
from pyrite.plan import BASE
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import read_passages, read_qrels, read_queries

#: The metric that is corrected: its difference between two models is a sum over pairs.
METRIC = "dcg@5"

#: The fewest graded pairs that give a corrected gain: with fewer, the interval is too narrow.
MIN_GRADED = 20


class Item(NamedTuple):
    """A pair as people read it."""

    query: str
    context: str
    passage: str


@dataclass(frozen=True, eq=False)
class Task:
    """The pairs of a run to grade.

    Attributes:
        report: the run's report.json.
        pairs: all pairs of the first five ranks of base and chosen model.
        judged: the gain of each pair by the answer key, shape (pairs,).
        top_gain: the gain of a passage of grade 4: the highest relevance of the answer key.
        order: the pairs to grade, as indices in ``pairs.keys``.
        items: their texts, in the same order.
    """

    report: Mapping[str, Any]
    pairs: Population
    judged: Values
    top_gain: int
    order: list[int]
    items: list[Item]

    def key(self, position: int) -> Key:
        """The pair at ``position`` in the order of grading."""
        return self.pairs.keys[self.order[position]]


def open_task(run: Run, report: Mapping[str, Any], total: int) -> Task:
    """The task of a finished run.

    Args:
        report: the run's report.json.
        total: number of pairs to grade.

    Raises:
        UserError: the run has nothing to compare, or its tables have changed since it was evaluated.
        PyriteError: an output of the run is missing or damaged.
    """
    name, chosen = run.spec.name, report["chosen"]
    if chosen == BASE:
        raise UserError(
            f"run {name} chose the base model, so there is no gain to correct. Grade a run that chose a tuned model."
        )
    context = run.reading_context()
    rankings = tables.read(context.input("report/rankings.parquet"), tables.RANKINGS)
    pairs = population(rankings, chosen, report["per_query"][BASE][METRIC].keys(), report["seed"])
    if not np.any(pairs.difference):
        raise UserError(
            f"base model and chosen model of run {name} rank the same five passages first for every test query, so "
            "there is no gain to correct."
        )
    qrels = read_qrels(context)
    columns = (qrels[column].to_pylist() for column in ("query_id", "passage_id", "grade"))
    gains = {(query, passage): grade for query, passage, grade in zip(*columns, strict=True)}
    judged = np.array([float(gains.get(key, 0)) for key in pairs.keys])
    order = in_order(pairs, judged, total)
    return Task(report, pairs, judged, max(gains.values()), order, _items(context, [pairs.keys[i] for i in order]))


def _items(context: StepContext, keys: list[Key]) -> list[Item]:
    queries, passages = read_queries(context), read_passages(context)
    text_of = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    columns = (passages[column].to_pylist() for column in ("passage_id", "context", "text"))
    passage_of = {passage: (title or "", text) for passage, title, text in zip(*columns, strict=True)}
    if any(query not in text_of or passage not in passage_of for query, passage in keys):
        name = context.spec.name
        raise UserError(
            f"the passages or queries of run {name} have changed since it was evaluated. Finish it with `pyrite train`."
        )
    return [Item(text_of[query], *passage_of[passage]) for query, passage in keys]


def result(task: Task, grades: Mapping[Key, int]) -> dict[str, Any]:
    """The gain by the answer key, and corrected by people's ``grades``, as JSON values.

    In ``corrected``, a pair's gain is ``gain_of`` its grade. In ``corrected_binary``, grades 3 and 4 have the gain of
    grade 4, and 1 and 2 have none, as with a binary answer key. Both are None if too few pairs are graded.
    """
    report, pairs = task.report, task.pairs
    sample = graded_sample(pairs, grades)
    graded, binary = np.full((2, len(pairs.keys)), np.nan)
    for index, grade in sample.items():
        graded[index] = gain_of(grade, task.top_gain)
        binary[index] = task.top_gain if grade >= RELEVANT else 0
    queries = sorted(report["per_query"][BASE][METRIC])
    number = {query: position for position, query in enumerate(queries)}
    of_query = np.array([number[query] for query, _ in pairs.keys])
    clusters = [report["clusters"].get(query, query) for query in queries]

    def corrected(gains: Values) -> dict[str, Any] | None:
        known = ppi.Pairs(of_query, pairs.stratum, task.judged, gains, clusters)
        return _corrected(pairs, known) if len(sample) >= MIN_GRADED and ppi.is_estimable(known) else None

    compared = report["comparisons"][report["chosen"]][METRIC]
    return {
        "pyrite": __version__,
        "run": report["name"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": report["chosen"],
        "metric": METRIC,
        "queries": len(queries),
        "top_gain": task.top_gain,
        "pairs": {"all": len(pairs.keys), "to_grade": len(task.order), "graded": len(sample), "needed": MIN_GRADED},
        "strata": _strata(task, graded),
        "judged": {
            key: compared[key] for key in ("base", "difference", "difference_interval", "relative", "relative_interval")
        },
        "corrected": corrected(graded),
        "corrected_binary": corrected(binary),
    }


def gain_of(grade: int, top_gain: int) -> float:
    """The gain of a passage in DCG by its grade: 0, 1/3, 2/3 or 1 times the gain of the answer key's best passages."""
    return top_gain * (grade - 1) / 3


def _corrected(pairs: Population, known: ppi.Pairs) -> dict[str, Any]:
    base, difference = ppi.mean(pairs.base, known), ppi.mean(pairs.difference, known)
    relative = ppi.ratio(pairs.difference, pairs.base, known)
    return {
        "base": base.value,
        "difference": difference.value,
        "difference_interval": _plain(difference),
        "relative": relative.value if np.isfinite(relative.value) else None,
        "relative_interval": _plain(relative),
        "judge_weight": difference.judge_weight,
    }


def _plain(estimate: ppi.Estimate) -> dict[str, float | None]:
    return {key: value if np.isfinite(value) else None for key, value in asdict(estimate.interval).items()}


def _strata(task: Task, graded: Values) -> list[dict[str, Any]]:
    """The size of each stratum, and the mean gains of its graded pairs, by the answer key and by people."""
    rows = []
    for number, name in enumerate(STRATA):
        members = task.pairs.stratum == number
        found = members & np.isfinite(graded)
        means = (float(gains[found].mean()) if found.any() else None for gains in (task.judged, graded))
        row = {"name": name, "pairs": int(members.sum()), "graded": int(found.sum())}
        rows.append(row | dict(zip(("judged", "people"), means, strict=True)))
    return rows
