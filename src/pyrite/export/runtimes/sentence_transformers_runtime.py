"""Embeds texts with sentence-transformers and PyTorch, from the plain layout."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from standalone import Embed, Floats, run


def start(folder: Path, file: str) -> Embed:
    """Load the model."""
    del file  # found by its name
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"})

    def embed(texts: Sequence[str], kind: str) -> Floats:
        encode = model.encode_query if kind == "query" else model.encode_document
        vectors = encode(list(texts), batch_size=len(texts), show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    return embed


if __name__ == "__main__":
    run(start, ["sentence-transformers", "torch", "tokenizers"])
