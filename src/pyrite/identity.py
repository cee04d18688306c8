"""Text normalisation, the ids that are derived from it, and a compact set of ids."""

import bisect
import hashlib
import unicodedata
from array import array

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pyrite.errors import PyriteError

#: Ids as numbers: the hexadecimal digits of each.
Keys = npt.NDArray[np.uint64]

_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)

#: The value of each digit by its character.
_VALUES = np.zeros(256, np.uint8)
_VALUES[_DIGITS] = np.arange(16)


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


def keys(ids: pa.ChunkedArray) -> Keys:
    """The hexadecimal digits of ids, as numbers in the same order. The "q" of a query's id counts as 0.

    Raises:
        PyriteError: an id does not have 16 characters.
    """
    if len(odd := ids.filter(pc.not_equal(pc.binary_length(ids), 16))):
        raise PyriteError(f"id '{odd[0]}' does not have 16 characters. Run prepare again.")
    parts = [np.frombuffer(each.buffers()[2], np.uint8, 16 * len(each), 16 * each.offset) for each in ids.chunks]
    values = _VALUES[np.concatenate([np.empty(0, np.uint8), *parts])]
    octets: npt.NDArray[np.uint8] = values[0::2] << 4 | values[1::2]
    return octets.view(">u8").astype(np.uint64)


def passage_ids(keys: Keys) -> pa.StringArray:
    """The ids of the passages whose ids have the digits ``keys``."""
    return _strings(_digits(keys))


def query_ids(keys: Keys) -> pa.StringArray:
    """The ids of the queries whose ids have the digits ``keys``, below 2**60."""
    digits = _digits(keys)
    digits[:, 0] = ord("q")
    return _strings(digits)


def _digits(keys: Keys) -> npt.NDArray[np.uint8]:
    """The 16 hexadecimal digits of each key in ASCII (keys x 16)."""
    octets = keys.astype(">u8").view(np.uint8).reshape(-1, 8)
    digits = np.empty((len(keys), 16), np.uint8)
    digits[:, 0::2], digits[:, 1::2] = _DIGITS[octets >> 4], _DIGITS[octets & 15]
    return digits


def _strings(digits: npt.NDArray[np.uint8]) -> pa.StringArray:
    offsets = np.arange(0, digits.size + 1, 16, dtype=np.int32)
    return pa.StringArray.from_buffers(len(digits), pa.py_buffer(offsets), pa.py_buffer(digits))


class IdSet:
    """A set of strings of any length that takes about 16 bytes for each.

    It stores 64-bit hashes: a string of ten million is wrongly taken for another one with a probability of 3 in a
    million.
    """

    #: New hashes are in a Python set until there are this many, or 1/16 of the sorted ones.
    _MIN_RECENT = 1 << 14

    def __init__(self) -> None:
        self._sorted: array[int] = array("q")
        self._recent: set[int] = set()

    def add(self, text: str) -> bool:
        """Add ``text``; return whether it is new."""
        if text in self:
            return False
        self._recent.add(hash(text))
        if len(self._recent) >= max(self._MIN_RECENT, len(self._sorted) // 16):
            merged = np.concatenate([np.asarray(self._sorted), np.fromiter(self._recent, np.int64, len(self._recent))])
            merged.sort()
            self._sorted, self._recent = array("q"), set()
            self._sorted.frombytes(merged.view(np.uint8).data)
        return True

    def __contains__(self, text: object) -> bool:
        number = hash(text)
        if number in self._recent:
            return True
        position = bisect.bisect_left(self._sorted, number)
        return position < len(self._sorted) and self._sorted[position] == number
