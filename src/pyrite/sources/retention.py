"""Retention sets: data of another domain than the run's, as BEIR folders, archives of one, or the built-in set."""

import hashlib
from collections.abc import Iterator, Sequence

from pyrite.errors import UserError
from pyrite.sample import general
from pyrite.sources.base import Document, Question
from pyrite.sources.beir import Beir
from pyrite.sources.files import local_path
from pyrite.spec import BeirSource
from pyrite.spec.stages import retention_name

#: The path of the built-in set of general knowledge.
BUILTIN = "builtin:general"
PATH = "evaluate.retention.path"
REPORT = "evaluate.retention.report"


def read(path: str, setting: str = PATH) -> tuple[list[Document], list[Question]]:
    """The documents, and the queries that have a relevant document. ``setting`` is the one that holds ``path``.

    Raises:
        UserError: the set cannot be read, has no such query, or is an unknown built-in set.
    """
    if path.startswith("builtin:") and path != BUILTIN:
        raise UserError(f"{setting}: there is no built-in set {path}. Set {BUILTIN}, or a path.")
    records = list(_builtin_records() if path == BUILTIN else _open(path, setting).records())
    questions = [record for record in records if isinstance(record, Question)]
    if not questions:
        raise UserError(
            f"{setting}: no query of {path} has a relevant document, so no score can be computed. "
            "Fix its qrels, or set another path."
        )
    return [record for record in records if isinstance(record, Document)], questions


def digest(paths: Sequence[str], setting: str = PATH) -> str:
    """Hex sha256 of the names and files of the sets. Also reads them, to report errors before the first step of a run.

    Raises:
        UserError: as ``read``.
    """
    digests = []
    for path in paths:
        content = general.digest() if path.startswith("builtin:") else _open(path, setting).digest()
        read(path, setting)
        digests.append((retention_name(path), content))
    return hashlib.sha256(repr(digests).encode()).hexdigest()


def _builtin_records() -> Iterator[Document | Question]:
    for fact in general.facts():
        yield Document(fact.id, fact.text)
    for fact in general.facts():
        for text in fact.questions:
            yield Question(text, text, relevant={fact.id: 1})


def _open(path: str, setting: str) -> Beir:
    return Beir(BeirSource(path=local_path(path, setting)), setting)
