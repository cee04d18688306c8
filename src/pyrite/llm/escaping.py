"""Escapes markup in texts that are put into a prompt, so that a text cannot end its block or pose as a chat turn."""

import re

# The prompt's own delimiters, and those of common chat templates, whose text a tokenizer may read as a special token.
# Invisible characters inside a delimiter are allowed.
_INVISIBLE = "[\\s\u200b-\u200f\u2060\ufeff]*"
_MARKUP = re.compile(
    rf"[<\[](?={_INVISIBLE}(?:[|｜]|</?{_INVISIBLE}sys\b|/?{_INVISIBLE}(?:query|passage|inst|s|think|bos|eos|pad|"
    rf"start_of_turn|end_of_turn|system_prompt|available_tools|tool_calls?){_INVISIBLE}[>\]]|/?{_INVISIBLE}(?:query|passage)\b))",
    re.IGNORECASE,
)
_REPLACEMENTS = {"<": "‹", "[": "("}


def escape_markup(text: str) -> str:
    """Replace the opening bracket of everything that looks like a delimiter. The length of ``text`` does not change.

    If you change the result, increment ``pyrite.judges.prompt._RENDERING``, because the judge's prompts change.
    """
    return _MARKUP.sub(lambda match: _REPLACEMENTS[match[0]], text)
