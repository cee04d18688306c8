"""The file of grades in the store: every grade is stored at once, and none is lost."""

import pytest

from pyrite.errors import UserError
from pyrite.people.grades import GradeFile
from pyrite.store import Store

KEY = "runs/r/people/grades.qrels"


def test_grades_are_trec_qrels_of_grade_minus_one(store: Store) -> None:
    file = GradeFile(store, KEY)
    assert file.read() == {}
    file.add(("q1", "p1"), 4)
    file.add(("q2", "p1"), 1)
    file.add(("q1", "p1"), 3)
    assert store.read(KEY) == b"q1 0 p1 2\nq2 0 p1 0\n"
    assert GradeFile(store, KEY).read() == {("q1", "p1"): 3, ("q2", "p1"): 1}


def test_two_graders_lose_no_grade(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    file, put = GradeFile(store, KEY), store.conditional_put
    rivals = [("q2", "p2"), ("q3", "p3")]

    def put_after_rival(*arguments: object) -> object:
        if rivals:
            monkeypatch.setattr(store, "conditional_put", put)
            GradeFile(store, KEY).add(rivals.pop(), 2)
            monkeypatch.setattr(store, "conditional_put", put_after_rival)
        return put(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "conditional_put", put_after_rival)
    file.add(("q1", "p1"), 4)
    assert file.read() == {("q1", "p1"): 4, ("q2", "p2"): 2, ("q3", "p3"): 2}


@pytest.mark.parametrize("line", ["q1 0 p1", "q1 0 p1 4", "q1 0 p1 good"])
def test_a_damaged_line_is_named_and_nothing_is_overwritten(store: Store, line: str) -> None:
    store.write(KEY, f"q0 0 p0 1\n{line}\n".encode())
    file = GradeFile(store, KEY)
    with pytest.raises(UserError, match=rf"{KEY}:2: '{line}' is not"):
        file.add(("q2", "p2"), 1)
    assert store.read(KEY).endswith(f"{line}\n".encode())
