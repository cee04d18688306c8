"""Embeds texts with model2vec: the mean of the static embeddings of a text's tokens."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from model2vec import StaticModel
from standalone import Embed, Floats, run


def start(folder: Path, file: str) -> Embed:
    """Load the model. Its folder has window and normalisation; prompts would only add the same vector to all texts."""
    model = StaticModel.from_pretrained(folder / file)

    def embed(texts: Sequence[str], kind: str) -> Floats:
        del kind
        return model.encode(list(texts), batch_size=len(texts), use_multiprocessing=False).astype(np.float32)

    return embed


if __name__ == "__main__":
    note = (
        "a static model is another model, which ignores the order of words: look at top 10 and MRR@5, not at cosines."
    )
    run(start, ["model2vec", "tokenizers"], [note])
