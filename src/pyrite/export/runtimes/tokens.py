"""The tokenizer of the programs that have none of their own. It imports tokenizers, numpy and the standard library."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from standalone import window
from tokenizers import Tokenizer


class Tokens:
    """Splits texts into tokens with tokenizer.json, truncated to the window and padded on the right."""

    def __init__(self, folder: Path):
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if (length := window(folder)) is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(length)
        self._tokenizer.no_padding()

    def __call__(self, texts: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
        """The model's inputs for ``texts``, each of shape (texts, tokens)."""
        encoded = self._tokenizer.encode_batch(list(texts))
        # A tokenizer without special tokens splits an empty text into none, and models need one.
        shape = len(texts), max(1, *(len(each.ids) for each in encoded))
        inputs = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
        for row, each in enumerate(encoded):
            size = len(each.ids)
            inputs["input_ids"][row, :size] = each.ids
            inputs["token_type_ids"][row, :size] = each.type_ids
            inputs["attention_mask"][row, :size] = 1
        return inputs
