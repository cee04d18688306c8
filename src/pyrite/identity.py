"""Text normalisation, and the ids that are derived from it."""

import hashlib
import unicodedata


def normalise(text: str) -> str:
    """``text`` in the form that is compared: NFKC, lower case, runs of whitespace as one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def passage_id(text: str) -> str:
    """The id of a passage. Passages that are equal when normalised have the same id."""
    return _hex(text, 16)


def query_id(text: str) -> str:
    """The id of a query. Queries that are equal when normalised have the same id."""
    return "q" + _hex(text, 15)


def _hex(text: str, length: int) -> str:
    return hashlib.sha256(normalise(text).encode()).hexdigest()[:length]
