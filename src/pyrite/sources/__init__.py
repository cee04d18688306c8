"""Data sources: documents, and the questions that they answer.

To add a source: write a class with the methods of ``base.Source`` in a file of its own, add its settings to
``spec.SourceSpec``, and register it in ``SOURCES``.
"""

from collections.abc import Callable
from typing import Any

from pyrite.sources.base import Source
from pyrite.sources.beir import Beir
from pyrite.sources.documents import Documents
from pyrite.sources.files import local_path
from pyrite.sources.huggingface import Huggingface
from pyrite.sources.medquad import Medquad, Sample
from pyrite.sources.qa import Qa
from pyrite.sources.stackexchange import Stackexchange
from pyrite.spec import SourceSpec

#: By ``source.kind``.
SOURCES: dict[str, Callable[[Any], Source]] = {
    "sample": Sample,
    "medquad": Medquad,
    "jsonl": Qa,
    "csv": Qa,
    "parquet": Qa,
    "beir": Beir,
    "stackexchange": Stackexchange,
    "huggingface": Huggingface,
    "documents": Documents,
}


def open_source(spec: SourceSpec) -> Source:
    """Open the source that ``spec`` describes. A source on S3 is downloaded; nothing else is read yet.

    Raises:
        UserError: the path on S3 does not exist.
    """
    if path := getattr(spec, "path", None):
        spec = spec.model_copy(update={"path": local_path(path, "source.path")})
    return SOURCES[spec.kind](spec)
