"""Finds boilerplate: passages, such as a disclaimer, that many documents contain in addition to their own text."""

from collections import Counter
from collections.abc import Mapping, Sequence

#: A passage is boilerplate if at least this share of the documents and at least this number of documents contain it.
#: The topics of a rarer passage form one group. With less than 5% of the documents, the group fits into every split
#: (val and test have 15%). In a small corpus, a passage in fewer than ten documents is more likely to be content.
MIN_SHARE = 0.05
MIN_DOCUMENTS = 10


def find(passages_of: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The ids of boilerplate passages, with the number of documents that contain each.

    Documents with the same passages count as one document. They are copies, such as one answer to several paraphrased
    questions, and must stay in one split.

    Args:
        passages_of: the passage ids of each document.
    """
    contents = {tuple(passages) for passages in passages_of.values()}
    counts = Counter(passage for passages in contents for passage in set(passages))
    minimum = max(MIN_DOCUMENTS, MIN_SHARE * len(contents))
    return {passage: count for passage, count in counts.items() if count >= minimum}


def describe(found: Mapping[str, int], texts: Mapping[str, str], documents: int) -> list[str]:
    """The note for ``found`` in prepare's summary; none if it is empty. ``texts``: text of each boilerplate passage."""
    if not found:
        return []
    most = max(found, key=lambda passage: (found[passage], passage))
    number = "1 passage is" if len(found) == 1 else f"{len(found):,} passages are"
    return [
        f"{number} boilerplate: at least {MIN_SHARE:.0%} of the documents contain it beside other text. Boilerplate "
        f"answers no question and joins no topics. The most frequent is in {found[most]:,} of {documents:,} documents: "
        f"'{_shorten(texts[most])}'"
    ]


def _shorten(text: str, length: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[:length]}..."
