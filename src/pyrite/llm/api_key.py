"""The API key: from a file or the environment, to the server's header, and nowhere else."""

import os
from pathlib import Path

from pyrite.errors import UserError

KEY_VARIABLE = "PYRITE_JUDGE_API_KEY"


def read_key(file: str | None) -> str | None:
    """The key in ``file``; without a file, in PYRITE_JUDGE_API_KEY; None where there is none.

    Raises:
        UserError: the file cannot be read, or it holds no key, or something that no header can carry.
    """
    if file is None:
        where, key = KEY_VARIABLE, os.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            return None
    else:
        where = f"resources.judge_key_file {file}"
        try:
            key = Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            told = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UserError(f"{where} cannot be read: {told}.") from None
        if not key:
            raise UserError(f"{where} is empty; it should hold the API key and nothing else.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{where} does not hold an API key: a key is one word of ASCII characters.")
    return key
