"""Embeds texts with llama.cpp, by llama-cpp-python, and with the model's own tokenizer."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from llama_cpp import Llama
from standalone import Embed, Floats, modules, prompts, read_json, run, window
from tokenizers import Tokenizer


class OwnTokenizer:
    """Splits texts with tokenizer.json, truncated to the window. It has the part of LlamaTokenizer that is used here.

    llama.cpp's own tokenizer drops the final [SEP] of long texts, and splits some texts in another way.
    """

    def __init__(self, folder: Path, limit: int):
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(limit)
        self._tokenizer.no_padding()

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """The tokens of ``text``, always with the special tokens that the model expects."""
        del add_bos, special
        return list(self._tokenizer.encode(text.decode("utf-8")).ids)


def start(folder: Path, file: str) -> Embed:
    """Load the model. Pooling is in the GGUF file; llama.cpp applies no prompts, and normalises on request."""
    limit = window(folder) or int(read_json(folder / "config.json")["max_position_embeddings"])
    # A batch has all tokens of a text, because each attends to the others. Several short texts share a batch.
    sizes = {"n_ctx": limit, "n_batch": limit, "n_ubatch": limit}
    model = Llama(str(folder / file), embedding=True, tokenizer=OwnTokenizer(folder, limit), verbose=False, **sizes)
    prefix, normalized = prompts(folder), "Normalize" in dict(modules(folder))

    def embed(texts: Sequence[str], kind: str) -> Floats:
        return np.array(model.embed([prefix[kind] + text for text in texts], normalize=normalized), dtype=np.float32)

    return embed


def split_differently(folder: Path, file: str, texts: Sequence[str]) -> list[str]:
    """A note if llama.cpp's own tokenizer splits some of ``texts``, up to the window, in another way."""
    limit = window(folder) or int(read_json(folder / "config.json")["max_position_embeddings"])
    model = Llama(str(folder / file), vocab_only=True, verbose=False)
    right = OwnTokenizer(folder, limit)
    pairs = [(right.tokenize(each.encode()), model.tokenize(each.encode())) for each in texts]
    compared = [own == theirs for own, theirs in pairs if len(own) < limit]
    if all(compared):
        return []
    return [
        f"llama.cpp's own tokenizer splits {compared.count(False)} of {len(compared)} texts in another way. This check "
        "used tokenizer.json; to be exact with llama-server, send token ids."
    ]


if __name__ == "__main__":
    request = read_json(Path(sys.argv[2]))
    differences = split_differently(Path(sys.argv[1]), request["file"], request["texts"])
    run(start, ["llama_cpp_python", "tokenizers"], differences)
