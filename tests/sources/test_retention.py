"""Retention sets: the built-in one, and errors."""

import pytest

from pyrite.errors import UserError
from pyrite.identity import normalise
from pyrite.sources import retention
from pyrite.spec.stages import retention_name


def test_builtin_set_has_distinct_documents_and_questions() -> None:
    documents, questions = retention.read(retention.BUILTIN)
    assert (len(documents), len(questions)) == (216, 144)
    assert len({normalise(document.text) for document in documents}) == 216
    assert len({normalise(question.text) for question in questions}) == 144
    known = {document.id for document in documents}
    assert all(len(question.relevant) == 1 and question.relevant.keys() <= known for question in questions)


def test_half_of_the_builtin_questions_do_not_name_the_subject() -> None:
    questions = retention.read(retention.BUILTIN)[1]
    named = [next(iter(question.relevant)).rpartition(":")[0] in question.text for question in questions]
    assert sum(named) == 72


def test_an_unknown_builtin_set_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"evaluate.retention.report: there is no built-in set builtin:other"):
        retention.digest(["builtin:other"], retention.REPORT)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/cisi-beir.tar.xz", "cisi-beir"),
        ("s3://bucket/sets/other.zip", "other"),
        ("folder/", "folder"),
        ("builtin:general", "builtin:general"),
    ],
)
def test_the_name_of_a_set_is_that_of_its_folder_or_archive(path: str, name: str) -> None:
    assert retention_name(path) == name
