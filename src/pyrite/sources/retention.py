"""The retention set: a BEIR folder, or an archive of one, from another field than the run's own."""

from pyrite.errors import UserError
from pyrite.sources.base import Document, Question
from pyrite.sources.beir import Beir
from pyrite.sources.remote import brought, is_remote
from pyrite.spec import BeirSource

_SETTING = "evaluate.retention.path"


def read(path: str) -> tuple[list[Document], list[Question]]:
    """Its documents, and its queries that have a relevant document.

    Raises:
        UserError: it cannot be read, or has no such query.
    """
    documents: list[Document] = []
    questions: list[Question] = []
    for record in _opened(path).records():
        if isinstance(record, Document):
            documents.append(record)
        elif isinstance(record, Question):
            questions.append(record)
    if not questions:
        raise UserError(
            f"{_SETTING}: no query of {path} has a relevant document, so nothing can be scored there. "
            "Mend its qrels, or name another."
        )
    return documents, questions


def digest(path: str) -> str:
    """Hex sha256 of its files. They are read whole, so that what is wrong in them is told before a run's first step.

    Raises:
        UserError: as ``read``.
    """
    found = _opened(path).digest()
    read(path)
    return found


def _opened(path: str) -> Beir:
    return Beir(BeirSource(path=str(brought(path, _SETTING)) if is_remote(path) else path), _SETTING)
