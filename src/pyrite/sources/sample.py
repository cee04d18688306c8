"""The built-in practice corpus, in the same XML as MedQuAD."""

import hashlib
from collections.abc import Iterator

from pyrite.sources import medquad
from pyrite.sources.base import Record
from pyrite.spec import SampleSource


class Sample:
    """The source ``sample``. Its files assign the splits themselves."""

    def __init__(self, spec: SampleSource) -> None:
        self._spec = spec

    def records(self) -> Iterator[Record]:
        """Yield a Document and a Question per pair."""
        from pyrite.sample import documents

        return medquad.parse(documents(), "built-in sample")

    def digest(self) -> str:
        """Hex sha256 of all names and contents."""
        from pyrite.sample import documents

        total = hashlib.sha256()
        for name, content in documents():
            total.update(f"\0{name}\0{len(content)}\0".encode())
            total.update(content)
        return total.hexdigest()
