"""Cutting a text into passages at sentence boundaries."""

import itertools
import re
from collections import deque
from collections.abc import Iterator

import sentencex

Span = tuple[int, int]


def split_into_passages(text: str, min_chars: int, max_chars: int) -> list[Span]:
    """Cut ``text`` into spans (start, end) of at most ``max_chars`` characters, in order, without overlap.

    Nothing but whitespace lies between, before and after the spans, and no span starts or ends with
    whitespace. A span ends with a sentence where that is possible. Where a sentence does not fit, it is cut
    between words, and a word that is too long by itself is cut anywhere. No span is shorter than
    ``min_chars`` where cutting between words allows it; a text shorter than that is one span. A blank text
    has none.
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
            # What there is so far is too short to stand, and the next sentence does not fit: share it out.
            done[-1:] = _balanced(text, done[-1], (start, end), max_chars)
    if len(done) > 1 and done[-1][1] - done[-1][0] < min_chars:
        done[-2:] = _settled(text, done[-2], done[-1], min_chars, max_chars)
    return done


def _sentences(text: str) -> Iterator[Span]:
    """Spans of the sentences of ``text``, without the whitespace around them."""
    for paragraph in _paragraphs(text):
        for start, end in _segments(text, paragraph):
            if span := _trimmed(text, start, end):
                yield span


def _paragraphs(text: str) -> Iterator[Span]:
    breaks = [match.span() for match in re.finditer(r"\n[^\S\n]*\n\s*", text)]
    edges = [0, *itertools.chain.from_iterable(breaks), len(text)]
    yield from zip(edges[::2], edges[1::2], strict=True)


def _segments(text: str, paragraph: Span) -> Iterator[Span]:
    """What sentencex makes of one paragraph, as offsets in ``text``.

    sentencex 1.0 can lose line ends between paragraphs of a long text, and panics on whitespace of several
    bytes after an initial: it gets one paragraph at a time, with each blank as a plain one, so that lengths
    do not change. If what comes back is still not what went in, the paragraph counts as one sentence.
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
    """Cut a sentence that is too long into pieces of at most ``max_chars``, between words where there is a
    gap.
    """
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
    """Offset of whitespace strictly between ``low`` and ``high`` that is nearest to ``wanted``, if any."""
    for distance in range(max(wanted - low, high - wanted)):
        for offset in (wanted - distance, wanted + distance):
            if low < offset < high and text[offset].isspace():
                return offset
    return None


def _balanced(text: str, left: Span, right: Span, max_chars: int) -> list[Span]:
    """Two neighbouring spans, cut anew between words as near to the middle as ``max_chars`` allows."""
    start, end = left[0], right[1]
    middle = (start + end) // 2
    low, high = max(start, end - max_chars - 1), min(end, start + max_chars + 1)
    cut = _gap(text, low, middle, high)
    if cut is None:
        return [left, right]
    return [span for span in (_trimmed(text, start, cut), _trimmed(text, cut, end)) if span]


def _settled(text: str, left: Span, right: Span, min_chars: int, max_chars: int) -> list[Span]:
    """The last two spans when the last is too short: joined, or cut anew, after a sentence if possible."""
    start, end = left[0], right[1]
    if end - start <= max_chars:
        return [(start, end)]
    inner = list(_sentences(text[start : left[1]]))
    ends = [
        (start + one[1], start + other[0])
        for one, other in itertools.pairwise(inner)
        if min_chars <= one[1] <= max_chars and min_chars <= end - start - other[0] <= max_chars
    ]
    if ends:
        stop, again = min(ends, key=lambda pair: abs(pair[0] - (end - start) // 2 - start))
        return [(start, stop), (again, end)]
    return _balanced(text, left, right, max_chars)
