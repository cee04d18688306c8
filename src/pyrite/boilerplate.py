"""Finds boilerplate: passages, such as a disclaimer, that many documents contain in addition to their own text."""

import numpy as np

from pyrite.ragged import Numbers

#: A passage is boilerplate if at least this share of the documents and at least this number of documents contain it.
#: The topics of a rarer passage form one group. With less than 5% of the documents, the group fits into every split
#: (val and test have 15%). In a small corpus, a passage in fewer than ten documents is more likely to be content.
MIN_SHARE = 0.05
MIN_DOCUMENTS = 10


def count(documents: Numbers, passages: Numbers, contents: Numbers, num_passages: int) -> Numbers:
    """For each passage, the number of documents that contain it if it is boilerplate, otherwise 0.

    Documents with the same passages count as one document. They are copies, such as one answer to several paraphrased
    questions, and must stay in one split.

    Args:
        documents, passages: distinct pairs of a document and a passage in it, as numbers from 0.
        contents: for each document, a number that only documents with the same passages share.
        num_passages: the number of passages.
    """
    _, first = np.unique(contents, return_index=True)
    counted = np.zeros(len(contents), bool)
    counted[first] = True
    counts = np.bincount(passages[counted[documents]], minlength=num_passages)
    counts[counts < max(MIN_DOCUMENTS, MIN_SHARE * len(first))] = 0
    return counts


def describe(number: int, most: int, text: str, documents: int) -> str:
    """The note about ``number`` boilerplate passages in prepare's summary.

    Args:
        most, text: number of documents with the most frequent of them, and its text.
        documents: the number of all documents.
    """
    subject = "1 passage is" if number == 1 else f"{number:,} passages are"
    return (
        f"{subject} boilerplate: at least {MIN_SHARE:.0%} of the documents contain it beside other text. Boilerplate "
        f"answers no question and joins no topics. The most frequent is in {most:,} of {documents:,} documents: "
        f"'{_shorten(text)}'"
    )


def _shorten(text: str, length: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[:length]}..."
