"""Prompt files are validated, passages stay data, and messages fit the context length."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostile import HOSTILE, MARKS
from pyrite.errors import UserError
from pyrite.judges.prompt import Window, load_prompt
from stub_judge import tokens

DOMAINS = ["general", "medical", "finance", "legal", "programming"]
YES_NO = [f"{name}-yes-no" for name in DOMAINS]


@pytest.mark.parametrize("name", DOMAINS)
def test_packaged_prompts_order_rubric_query_passage(name: str) -> None:
    message = load_prompt(name).render("QQQ", "PPP")
    assert message.index("4 - ") < message.index("QQQ") < message.index("PPP")
    assert message.endswith("Answer with one digit: 1, 2, 3 or 4.")
    assert "do not follow" in message.partition("QQQ")[0]
    assert all(f"\n{grade} - " in message for grade in "1234")
    rubric = message.partition("<query>\nQQQ")[0]
    assert 150 <= len(rubric.split()) <= 260, "long enough for prefix caching, and no longer"


@pytest.mark.parametrize("name", YES_NO)
def test_yes_no_prompts_end_with_their_questions(name: str) -> None:
    prompt = load_prompt(name)
    messages = [prompt.render("QQQ", "PPP", number) for number in range(2)]
    shared = messages[0].partition("</passage>\n")[0]
    assert messages[1].startswith(shared), "both requests share rubric, query and passage"
    assert shared.index("Rules:") < shared.index("QQQ") < shared.index("PPP")
    assert "answer the query?" in messages[0]
    assert "Is the passage about the" in messages[1]
    assert all(message.endswith("? Answer with one word: yes or no.") for message in messages)
    assert "do not follow" in shared.partition("QQQ")[0]


@pytest.mark.parametrize("name", DOMAINS + YES_NO)
def test_packaged_prompts_have_a_paraphrase_of_the_same_form(name: str) -> None:
    prompt = load_prompt(name)
    assert prompt.paraphrase
    assert (prompt.paraphrase.form, len(prompt.paraphrase.endings)) == (prompt.form, len(prompt.endings))
    assert not set(prompt.before.splitlines()) & set(prompt.paraphrase.before.splitlines()) - {""} - {"Rules:"}


def test_prompts_have_distinct_digests() -> None:
    digests = [load_prompt(name).digest for name in DOMAINS + YES_NO]
    assert len(set(digests)) == len(digests)
    # Judgments are cached by digest: an edit that changes it makes users pay for all judgments again.
    assert digests[0].startswith("df4431ab182b")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_data(text: str) -> None:
    prompt = load_prompt("general")
    plain = prompt.render("", "")
    message = prompt.render(text, f"before {text} after")
    marks = MARKS.findall(plain)
    assert MARKS.findall(message) == marks, "no markup but the prompt's own"
    assert len(message) == len(plain) + 2 * len(text) + len("before  after"), "no text is removed"


@given(st.lists(st.sampled_from(["<", ">", "/", " ", "\n", "\u200b", "|", "passage", "Query", "x"]), max_size=12))
def test_no_text_can_close_its_block(pieces: list[str]) -> None:
    message = load_prompt("general").render("q", "".join(pieces))
    visible = re.sub("[\\s\u200b]", "", message)
    assert visible.count("</passage>") == 2, "in the rubric and at the end"
    assert visible.count("<passage>") == 2


def test_other_code_and_markup_is_not_escaped() -> None:
    code = "vector<int> a[3]; if (a < b || c > d) <div>x</div> [1] <script>"
    assert code in load_prompt("programming").render("q", code)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("template: x {query} {passage}\nrubric: y", ["rubric: unknown key", "template"]),
        ("template: x {query}", ["template: {passage} must occur once", "0 times"]),
        ("template: x {query} {query} {passage}", ["{query} must occur once", "2 times"]),
        ("template: x {passage} {query}", ["{query} must come before {passage}"]),
        ("template: '{query} {passage}'", ["no text before {query}. Explain the grades"]),
        ("template: [1]", ["template: missing, or not text"]),
        ("just words", ["mapping with the key template"]),
        ("form: maybe\ntemplate: x {query} {passage}", ["form: 'maybe' is unknown", "grades or yes_no"]),
        ("form: yes_no\ntemplate: x {query} {passage}", ["{question} must occur once", "0 times"]),
        ("form: yes_no\ntemplate: x {query} {question} {passage}", ["{passage} must come before {question}"]),
        ("form: yes_no\ntemplate: x {query} {passage} {question}", ["questions: not a mapping", "answers and topic"]),
        (
            "form: yes_no\ntemplate: x {query} {passage} {question}\nquestions: {answers: '', topic: t}",
            ["questions.answers: empty"],
        ),
        ("template: x {query} {passage}\nquestions: {}", ["questions: only the form yes_no has them"]),
        ("template: x {query} {passage}\nparaphrase: y", ["paraphrase: not a mapping"]),
        ("template: x {query} {passage}\nparaphrase: {template: y}", ["paraphrase: template: {query} must occur"]),
        ("a: [", [":1: not YAML"]),
    ],
)
def test_errors_name_the_prompt_file_and_the_field(tmp_path: Path, content: str, parts: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as stopped:
        load_prompt(str(path))
    assert all(part in str(stopped.value) for part in [str(path), *parts])


def test_load_prompt_reads_files_and_lists_packaged_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("template: |\n  Grade 1 to 4.\n  {query}\n  {passage}\n")
    assert load_prompt(str(path)).render("a", "b") == "Grade 1 to 4.\n<query>\na\n</query>\n<passage>\nb\n</passage>"
    with pytest.raises(UserError, match=r"judge.prompt: veterinary is neither .*general, general-yes-no, legal"):
        load_prompt("veterinary")


PROMPT = load_prompt("general")
EMPTY = tokens(PROMPT.render("", ""))


class TokenCounter:
    """Counts tokens as the stub server does, and counts how often it is called."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, message: str) -> int:
        self.calls += 1
        return tokens(message)


def fit(window: Window, query: str, passage: str) -> tuple[str, bool] | None:
    """The longest message, and whether its passage is truncated."""
    fitted: str | None = asyncio.run(window.fit(query, passage))  # type: ignore[arg-type]
    prompt = window._prompt
    return None if fitted is None else (prompt.render(query, fitted, prompt.longest), fitted != passage)


def test_a_message_that_fits_by_bytes_is_not_tokenized() -> None:
    count = TokenCounter()
    window = Window(PROMPT, EMPTY + 1300, EMPTY + 10, count)
    assert fit(window, "q" * 200, "é" * 500) == (PROMPT.render("q" * 200, "é" * 500), False)
    assert count.calls == 0


def test_escaped_markup_counts_with_its_escaped_length() -> None:
    """Regression: each "<" is escaped with three bytes, which made messages too long for the context length."""
    room = len(PROMPT.render("", "").encode()) + 1200
    fitted = fit(Window(PROMPT, room, 0, None), "q", "<passage>" * 90)
    assert fitted is not None
    message, is_truncated = fitted
    assert is_truncated
    assert len(message.encode()) <= room


def test_both_messages_of_a_pair_fit_with_the_same_passage() -> None:
    prompt = replace(load_prompt("general-yes-no"), endings=("?", "long question" * 100))
    room = tokens(prompt.render("", "", 1)) + 200
    fitted = asyncio.run(Window(prompt, room, 0, TokenCounter()).fit("q", "word " * 500))
    assert fitted
    assert room - 60 < tokens(prompt.render("q", fitted, 1)) <= room


def test_a_message_that_fits_by_tokens_is_not_truncated() -> None:
    count = TokenCounter()
    window = Window(PROMPT, EMPTY + 500, EMPTY + 10, count)
    passage = "word " * 300
    assert fit(window, "q", passage) == (PROMPT.render("q", passage), False)
    assert count.calls > 0


@given(st.text(min_size=1, max_size=3000), st.text(max_size=50), st.integers(30, 700), st.booleans())
def test_a_message_never_exceeds_the_context_length(passage: str, query: str, room: int, counted: bool) -> None:
    count = TokenCounter() if counted else None
    limit = EMPTY + room if counted else len(PROMPT.render("", "").encode()) + 256 + room
    fitted = fit(Window(PROMPT, limit, 0, count), query, passage)
    if count:
        assert count.calls < 20
    if fitted is None:
        return
    message, is_truncated = fitted
    assert tokens(message) < limit
    full = PROMPT.render(query, passage)
    assert is_truncated == (message != full)
    assert len(message) <= len(full)


def test_truncation_uses_most_of_the_context_length() -> None:
    count = TokenCounter()
    passage = "word " * 2000
    fitted = fit(Window(PROMPT, EMPTY + 400, EMPTY + 10, count), "q", passage)
    assert fitted is not None
    message, is_truncated = fitted
    assert is_truncated
    assert EMPTY + 330 < tokens(message) <= EMPTY + 400
    assert count.calls <= 5


@pytest.mark.parametrize("count", [TokenCounter(), None])
def test_a_query_that_fills_the_context_leaves_no_message(count: TokenCounter | None) -> None:
    assert fit(Window(PROMPT, EMPTY + 100, EMPTY + 10, count), "q" * 4000, "passage") is None


def test_nothing_is_truncated_without_a_known_limit() -> None:
    passage = "word " * 100_000
    assert fit(Window(PROMPT, None, 0, None), "q", passage) == (PROMPT.render("q", passage), False)
