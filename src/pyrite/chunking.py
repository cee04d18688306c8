"""Cuts a text into passages at sentence boundaries."""

import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator

import sentencex

from pyrite.words import can_divide

Span = tuple[int, int]


def split_into_passages(text: str, min_chars: int, max_chars: int) -> list[Span]:
    """Cut ``text`` into spans (start, end) of at most ``max_chars`` characters, in order, without overlap.

    The spans cover everything but whitespace, and none starts or ends with whitespace. Spans end with a sentence if
    possible. A sentence that is too long is cut between words, and a word that is too long is cut anywhere. No span is
    shorter than ``min_chars`` if cutting between words can avoid it; a shorter text is one span. Blank text has none.
    """
    done: list[Span] = []
    todo = deque(piece for sentence in _sentences(text) for piece in _pieces(text, sentence, max_chars))
    while todo:
        start, end = todo.popleft()
        if not done or (end - done[-1][0] > max_chars and done[-1][1] - done[-1][0] >= min_chars):
            done.append((start, end))
        elif end - done[-1][0] <= max_chars:
            done[-1] = (done[-1][0], end)
        else:
            # The last span is too short, and the next sentence does not fit: divide both evenly.
            done[-1:] = _divide(text, done[-1], (start, end), max_chars)
    if len(done) > 1 and done[-1][1] - done[-1][0] < min_chars:
        done[-2:] = _extend_last(text, done[-2], done[-1], min_chars, max_chars)
    return done


def _sentences(text: str) -> Iterator[Span]:
    """Spans of the sentences of ``text``, without surrounding whitespace."""
    for paragraph in _paragraphs(text):
        for start, end in _segments(text, paragraph):
            if span := _trimmed(text, start, end):
                yield span


def _paragraphs(text: str) -> Iterator[Span]:
    breaks = [match.span() for match in re.finditer(r"\n[^\S\n]*\n\s*", text)]
    edges = [0, *itertools.chain.from_iterable(breaks), len(text)]
    yield from zip(edges[::2], edges[1::2], strict=True)


def _segments(text: str, paragraph: Span) -> Iterator[Span]:
    """The sentences of one paragraph as sentencex finds them, as offsets in ``text``.

    sentencex 1.0 can drop line ends between paragraphs of a long text, and panics on multi-byte whitespace after an
    initial. So it gets one paragraph at a time, with plain blanks of the same number of characters. If its output does
    not add up to its input, the paragraph counts as one sentence.
    """
    position, end = paragraph
    plain = re.sub(r"[^\S\n]", " ", text[position:end])
    try:
        parts = sentencex.segment("en", plain)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        parts = [plain]
    if "".join(parts) != plain:
        parts = [plain]
    for part in parts:
        yield position, position + len(part)
        position += len(part)


def _trimmed(text: str, start: int, end: int) -> Span | None:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else None


def _pieces(text: str, span: Span, max_chars: int) -> Iterator[Span]:
    """Cut a sentence into pieces of at most ``max_chars``, between words if possible."""
    start, end = span
    while end - start > max_chars:
        cut = _gap(text, start, start + max_chars, start + max_chars + 1) or start + max_chars
        first, rest = _trimmed(text, start, cut), _trimmed(text, cut, end)
        assert first is not None
        assert rest is not None
        yield first
        start = rest[0]
    yield start, end


def _gap(text: str, low: int, wanted: int, high: int) -> int | None:
    """Offset of the gap between words nearest to ``wanted``, strictly between ``low`` and ``high``; None without a gap.

    A gap is whitespace. If none is near, it is also a place where a text without spaces between words may be cut.
    """
    space = _nearest(low, wanted, high, lambda offset: text[offset].isspace())
    if space is not None and abs(space - wanted) <= (high - low) // 4:
        return space
    boundary = _nearest(low, wanted, high, lambda offset: can_divide(text, offset))
    return space if boundary is None else boundary


def _nearest(low: int, wanted: int, high: int, accepts: Callable[[int], bool]) -> int | None:
    for distance in range(max(wanted - low, high - wanted)):
        for offset in (wanted - distance, wanted + distance):
            if low < offset < high and accepts(offset):
                return offset
    return None


def _divide(text: str, left: Span, right: Span, max_chars: int) -> list[Span]:
    """Two adjacent spans, cut again between words as close to the middle as ``max_chars`` allows."""
    start, end = left[0], right[1]
    middle = (start + end) // 2
    low, high = max(start, end - max_chars - 1), min(end, start + max_chars + 1)
    cut = _gap(text, low, middle, high)
    if cut is None:
        return [left, right]
    return [span for span in (_trimmed(text, start, cut), _trimmed(text, cut, end)) if span]


def _extend_last(text: str, left: Span, right: Span, min_chars: int, max_chars: int) -> list[Span]:
    """The last two spans if the last is too short: joined, or cut again, after a sentence if possible."""
    start, end = left[0], right[1]
    if end - start <= max_chars:
        return [(start, end)]
    sentences = list(_sentences(text[start : left[1]]))
    cuts = [
        (start + sentence[1], start + following[0])
        for sentence, following in itertools.pairwise(sentences)
        if min_chars <= sentence[1] <= max_chars and min_chars <= end - start - following[0] <= max_chars
    ]
    if cuts:
        left_end, right_start = min(cuts, key=lambda cut: abs(cut[0] - (end - start) // 2 - start))
        return [(start, left_end), (right_start, end)]
    return _divide(text, left, right, max_chars)
