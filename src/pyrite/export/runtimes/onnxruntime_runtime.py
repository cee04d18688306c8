"""Embeds texts with ONNX Runtime: tokenizers, then the model, then pooling with numpy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from standalone import Embed, Floats, modules, pool, prompts, run
from tokens import Tokens


def start(folder: Path, file: str) -> Embed:
    """Load the model."""
    session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
    names = {each.name for each in session.get_inputs()}
    tokenize, prefix, after = Tokens(folder), prompts(folder), modules(folder)

    def embed(texts: Sequence[str], kind: str) -> Floats:
        inputs = tokenize([prefix[kind] + text for text in texts])
        given = {name: value for name, value in inputs.items() if name in names}
        tokens = np.asarray(session.run(["last_hidden_state"], given)[0], dtype=np.float32)
        return pool(tokens, inputs["attention_mask"], after)

    return embed


if __name__ == "__main__":
    run(start, ["onnxruntime", "tokenizers"])
