"""The retention set: a BEIR folder, or an archive of one, from another domain than the run's."""

from pyrite.errors import UserError
from pyrite.sources.base import Document, Question
from pyrite.sources.beir import Beir
from pyrite.sources.files import local_path
from pyrite.spec import BeirSource

_SETTING = "evaluate.retention.path"


def read(path: str) -> tuple[list[Document], list[Question]]:
    """The documents, and the queries that have a relevant document.

    Raises:
        UserError: the set cannot be read, or has no such query.
    """
    records = list(_open(path).records())
    questions = [record for record in records if isinstance(record, Question)]
    if not questions:
        raise UserError(
            f"{_SETTING}: no query of {path} has a relevant document, so no score can be computed. "
            "Fix its qrels, or set another path."
        )
    return [record for record in records if isinstance(record, Document)], questions


def digest(path: str) -> str:
    """Hex sha256 of the files. Also reads the set, so that errors are reported before the first step of a run.

    Raises:
        UserError: as ``read``.
    """
    hexdigest = _open(path).digest()
    read(path)
    return hexdigest


def _open(path: str) -> Beir:
    return Beir(BeirSource(path=local_path(path, _SETTING)), _SETTING)
