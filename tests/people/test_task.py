"""The task of a finished run, and the corrected gain."""

from collections.abc import Callable

import pytest

from people.finished_run import write_run
from pyrite.errors import UserError
from pyrite.executors.step import Run
from pyrite.people.task import Task, gain_of, open_task, result
from pyrite.report.data import ReportInputs, build
from pyrite.store import Store
from report.report_factory import make
from report.test_data import with_base_chosen


@pytest.fixture
def opened(store: Store) -> Callable[..., Task]:
    def call(inputs: ReportInputs, total: int = 100) -> Task:
        write_run(store, inputs)
        return open_task(Run(inputs.spec, store, {}), build(inputs), total)

    return call


def as_the_key(task: Task) -> dict[tuple[str, str], int]:
    """Grades by a person who agrees with the answer key."""
    return {task.pairs.keys[index]: 4 if task.judged[index] else 1 for index in task.order}


def test_items_are_the_texts_of_the_pairs(opened: Callable[..., Task]) -> None:
    inputs = make()
    task = opened(inputs)
    texts = {row["query_id"]: row["text"] for row in inputs.queries.to_pylist()}
    passages = {row["passage_id"]: (row["context"], row["text"]) for row in inputs.passages.to_pylist()}
    assert len(task.items) == 100
    for position, item in enumerate(task.items):
        query, passage = task.key(position)
        assert item == (texts[query], *passages[passage])


def test_a_person_who_agrees_with_the_key_confirms_the_gain(opened: Callable[..., Task]) -> None:
    task = opened(make(), 10**6)
    found = result(task, as_the_key(task))
    for name in ("base", "difference", "relative"):
        assert found["corrected"][name] == pytest.approx(found["judged"][name])
    sample = opened(make(), 100)
    found = result(sample, as_the_key(sample))
    assert found["pairs"]["graded"] == 100
    assert found["corrected"]["judge_weight"] > 0.8
    assert found["corrected"]["difference"] == pytest.approx(found["judged"]["difference"], abs=0.05)
    wide, narrow = (
        row["difference_interval"]["high"] - row["difference_interval"]["low"]
        for row in (found["corrected"], found["judged"])
    )
    assert wide < 1.3 * narrow


def test_a_person_who_rejects_the_new_answers_removes_the_gain(opened: Callable[..., Task]) -> None:
    task = opened(make())
    grades = as_the_key(task)
    new = [index for index in task.order if task.pairs.stratum[index] == 1]
    found = result(task, grades | {task.pairs.keys[index]: 1 for index in new})
    assert found["judged"]["difference_interval"]["low"] > 0
    assert found["corrected"]["difference"] < 0.5 * found["judged"]["difference"]
    row = found["strata"][1]
    assert row["judged"] > row["people"] == 0


def test_the_binary_scale_counts_grades_3_and_4_as_relevant(opened: Callable[..., Task]) -> None:
    task = opened(make())
    key = {pair: 4 if gain else 1 for pair, gain in zip(task.pairs.keys, task.judged, strict=True)}
    softened = result(task, {pair: {4: 3, 1: 2}[grade] for pair, grade in key.items()})
    exact = result(task, key)
    for name in ("base", "difference", "relative", "difference_interval"):
        assert softened["corrected_binary"][name] == pytest.approx(exact["corrected"][name])
    assert softened["corrected"]["base"] != pytest.approx(exact["corrected"]["base"], rel=0.1)
    assert exact["corrected_binary"] == exact["corrected"]


def test_few_grades_give_no_corrected_gain(opened: Callable[..., Task]) -> None:
    task = opened(make())
    grades = as_the_key(task)
    few = {task.key(position): grades[task.key(position)] for position in range(19)}
    assert result(task, few)["corrected"] is None
    assert result(task, few)["pairs"]["graded"] == 19
    assert result(task, {})["corrected"] is None


def test_grade_4_has_the_gain_of_the_keys_best_passages() -> None:
    assert [gain_of(grade, 3) for grade in (1, 2, 3, 4)] == [0, 1, 2, 3]
    assert [gain_of(grade, 1) for grade in (1, 4)] == [0, 1]


def test_a_run_without_a_gain_is_refused(opened: Callable[..., Task]) -> None:
    with pytest.raises(UserError, match="chose the base model"):
        opened(with_base_chosen(make()))
