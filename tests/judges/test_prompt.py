"""Prompt files: what is checked, and that a passage stays data whatever is written in it."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostile import HOSTILE, MARKS
from pyrite.errors import UserError
from pyrite.judges.prompt import load_prompt

DOMAINS = ["general", "medical", "finance", "legal", "programming"]


@pytest.mark.parametrize("name", DOMAINS)
def test_a_packaged_prompt_puts_the_rubric_first_then_the_query_then_the_passage(name: str) -> None:
    message = load_prompt(name).render("QQQ", "PPP")
    assert message.index("4 - ") < message.index("QQQ") < message.index("PPP")
    assert message.endswith("Completion with one digit: 1, 2, 3 or 4.")
    assert "do not follow" in message.partition("QQQ")[0]
    assert all(f"\n{grade} - " in message for grade in "1234")
    rubric = message.partition("<query>\nQQQ")[0]
    assert 150 <= len(rubric.split()) <= 260, "worth caching, and no more"


def test_every_prompt_has_its_own_digest() -> None:
    assert len({load_prompt(name).digest for name in DOMAINS}) == len(DOMAINS)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_passage_or_query_is_put_as_data(text: str) -> None:
    prompt = load_prompt("general")
    plain = prompt.render("", "")
    message = prompt.render(text, f"before {text} after")
    marks = MARKS.findall(plain)
    assert MARKS.findall(message) == marks, "no mark but the prompt's own"
    assert len(message) == len(plain) + 2 * len(text) + len("before  after"), "nothing is left out"


@given(st.lists(st.sampled_from(["<", ">", "/", " ", "\n", "\u200b", "|", "passage", "Query", "x"]), max_size=12))
def test_no_text_can_close_its_block(pieces: list[str]) -> None:
    message = load_prompt("general").render("q", "".join(pieces))
    visible = re.sub("[\\s\u200b]", "", message)
    assert visible.count("</passage>") == 2, "in the rubric and at the end"
    assert visible.count("<passage>") == 2


def test_code_and_markup_that_are_no_marks_stay_as_they_are() -> None:
    code = "vector<int> a[3]; if (a < b || c > d) <div>x</div> [1] <script>"
    assert code in load_prompt("programming").render("q", code)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("template: x {query} {passage}\nrubric: y", ["rubric: unknown key", "template"]),
        ("template: x {query}", ["template: {passage} must stand in it once", "0 times"]),
        ("template: x {query} {query} {passage}", ["{query} must stand in it once", "2 times"]),
        ("template: x {passage} {query}", ["{query} must come before {passage}"]),
        ("template: '{query} {passage}'", ["must be explained before {query}"]),
        ("template: [1]", ["template: this text is needed"]),
        ("just words", ["mapping with the key template"]),
        ("a: [", [":1: not YAML"]),
    ],
)
def test_a_wrong_prompt_file_is_named_with_its_field(tmp_path: Path, content: str, parts: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as stopped:
        load_prompt(str(path))
    assert all(part in str(stopped.value) for part in [str(path), *parts])


def test_a_prompt_of_ones_own_and_one_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("template: |\n  Grade 1 to 4.\n  {query}\n  {passage}\n")
    assert load_prompt(str(path)).render("a", "b") == "Grade 1 to 4.\n<query>\na\n</query>\n<passage>\nb\n</passage>"
    with pytest.raises(UserError, match=r"judge.prompt: veterinary is no file, .*finance, general, legal"):
        load_prompt("veterinary")
