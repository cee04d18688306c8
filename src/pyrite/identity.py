"""When two texts are the same text, and the ids that follow from it."""

import hashlib
import unicodedata


def normalise(text: str) -> str:
    """``text`` as it is compared: NFKC, lower case, each run of whitespace one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def passage_id(text: str) -> str:
    """The id of a passage: equal passages have one."""
    return _hex(text, 16)


def query_id(text: str) -> str:
    """The id of a question: equal questions have one."""
    return "q" + _hex(text, 15)


def _hex(text: str, length: int) -> str:
    return hashlib.sha256(normalise(text).encode()).hexdigest()[:length]
