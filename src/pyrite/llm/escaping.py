"""Texts that stand in a prompt as data: nothing in them can end their block, or speak as the chat template does."""

import re

# Our own delimiters, and the marks with which the chat templates of common model families delimit turns: a tokenizer
# that meets their text may take it for the mark itself. Invisible characters inside are seen through.
_INVISIBLE = "[\\s\u200b-\u200f\u2060\ufeff]*"
_MARKS = re.compile(
    rf"[<\[](?={_INVISIBLE}(?:[|｜]|</?{_INVISIBLE}sys\b|/?{_INVISIBLE}(?:query|passage|inst|s|think|bos|eos|pad|"
    rf"start_of_turn|end_of_turn|system_prompt|available_tools|tool_calls?){_INVISIBLE}[>\]]|/?{_INVISIBLE}(?:query|passage)\b))",
    re.IGNORECASE,
)
_REPLACED = {"<": "‹", "[": "("}


def escape_markup(text: str) -> str:
    """``text`` with what looks like our delimiters or a chat template's marks broken up, character for character.

    What this makes of a text is part of what a judge is asked: with a change here, raise ``_RENDERING`` of
    ``pyrite.judges.prompt``.
    """
    return _MARKS.sub(lambda found: _REPLACED[found[0]], text)
