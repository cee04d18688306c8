"""Over-long passages are cut to what fits, by a count where somebody counts and by bytes where nobody does."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.judges.prompt import load_prompt
from pyrite.judges.window import Window
from stub_judge import tokens

PROMPT = load_prompt("general")
EMPTY = tokens(PROMPT.render("", ""))


class Counter:
    """Counts as the stub's model does, and how often it was asked."""

    def __init__(self) -> None:
        self.requested = 0

    async def __call__(self, message: str) -> int:
        self.requested += 1
        return tokens(message)


def fit(window: Window, query: str, passage: str) -> tuple[str, bool] | None:
    return asyncio.run(window.fit(query, passage))  # type: ignore[arg-type]


def test_what_fits_by_its_bytes_is_neither_cut_nor_counted() -> None:
    count = Counter()
    window = Window(PROMPT, EMPTY + 1300, EMPTY + 10, count)
    assert fit(window, "q" * 200, "é" * 500) == (PROMPT.render("q" * 200, "é" * 500), False)
    assert count.requested == 0


def test_marks_that_are_broken_up_count_as_they_stand_in_the_message() -> None:
    """The bug: "<" becomes three bytes, so a passage full of it does not fit though its own bytes do."""
    room = len(PROMPT.render("", "").encode()) + 1200
    fitted = fit(Window(PROMPT, room, 0, None), "q", "<passage>" * 90)
    assert fitted is not None
    message, cut = fitted
    assert cut
    assert len(message.encode()) <= room


def test_what_fits_by_its_tokens_is_counted_and_not_cut() -> None:
    count = Counter()
    window = Window(PROMPT, EMPTY + 500, EMPTY + 10, count)
    passage = "word " * 300
    assert fit(window, "q", passage) == (PROMPT.render("q", passage), False)
    assert count.requested > 0


@given(st.text(min_size=1, max_size=3000), st.text(max_size=50), st.integers(30, 700), st.booleans())
def test_a_message_never_exceeds_the_window_and_keeps_the_passages_beginning(
    passage: str, query: str, room: int, counted: bool
) -> None:
    count = Counter() if counted else None
    limit = EMPTY + room if counted else len(PROMPT.render("", "").encode()) + 256 + room
    fitted = fit(Window(PROMPT, limit, 0, count), query, passage)
    if count:
        assert count.requested < 20
    if fitted is None:
        return
    message, was_cut = fitted
    assert tokens(message) < limit
    assert was_cut == (message != PROMPT.render(query, passage))
    assert len(message) <= len(PROMPT.render(query, passage))


def test_a_cut_uses_most_of_the_window() -> None:
    count = Counter()
    passage = "word " * 2000
    fitted = fit(Window(PROMPT, EMPTY + 400, EMPTY + 10, count), "q", passage)
    assert fitted is not None
    message, was_cut = fitted
    assert was_cut
    assert EMPTY + 330 < tokens(message) <= EMPTY + 400
    assert count.requested <= 5


@pytest.mark.parametrize("count", [Counter(), None])
def test_a_query_that_fills_the_window_alone_leaves_nothing_to_judge(count: Counter | None) -> None:
    assert fit(Window(PROMPT, EMPTY + 100, EMPTY + 10, count), "q" * 4000, "passage") is None


def test_without_a_known_window_nothing_is_cut() -> None:
    passage = "word " * 100_000
    assert fit(Window(PROMPT, None, 0, None), "q", passage) == (PROMPT.render("q", passage), False)
