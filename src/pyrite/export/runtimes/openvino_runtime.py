"""Embeds texts with OpenVINO: tokenizers, then the model, then pooling with numpy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino
from standalone import Embed, Floats, modules, pool, prompts, run
from tokens import Tokens


def start(folder: Path, file: str) -> Embed:
    """Load the model."""
    # bfloat16, the default on CPUs that support it, is not what was exported.
    model = openvino.Core().compile_model(folder / file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = {each.get_any_name() for each in model.inputs}
    tokenize, prefix, after = Tokens(folder), prompts(folder), modules(folder)

    def embed(texts: Sequence[str], kind: str) -> Floats:
        inputs = tokenize([prefix[kind] + text for text in texts])
        found = model({name: value for name, value in inputs.items() if name in names})
        tokens = np.asarray(found["last_hidden_state"], dtype=np.float32)
        return pool(tokens, inputs["attention_mask"], after)

    return embed


if __name__ == "__main__":
    run(start, ["openvino", "tokenizers"])
