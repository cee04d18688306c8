"""Embeds texts with fastembed, which reads the ONNX model from a local folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from standalone import Embed, Floats, modules, prompts, read_json, run

_POOLING = {
    "mean_tokens": PoolingType.MEAN,
    "cls_token": PoolingType.CLS,
    "lasttoken": PoolingType.LAST_TOKEN,
}


def start(folder: Path, file: str) -> Embed:
    """Load the model. fastembed reads the window from tokenizer_config.json, but neither pooling nor prompts."""
    after = dict(modules(folder))
    pooling = next(key for key, used in after["Pooling"].items() if key.startswith("pooling_mode_") and used)
    TextEmbedding.add_custom_model(
        model="exported",
        pooling=_POOLING[pooling.removeprefix("pooling_mode_")],
        normalization="Normalize" in after,
        sources=ModelSource(url="not-used"),  # required, but only used without specific_model_path
        dim=read_json(folder / "config.json")["hidden_size"],
        model_file=file,
    )
    model = TextEmbedding("exported", specific_model_path=str(folder), providers=["CPUExecutionProvider"])
    prefix = prompts(folder)

    def embed(texts: Sequence[str], kind: str) -> Floats:
        vectors = model.embed([prefix[kind] + text for text in texts], batch_size=len(texts))
        return np.stack(list(vectors)).astype(np.float32)

    return embed


if __name__ == "__main__":
    run(start, ["fastembed", "onnxruntime", "tokenizers"])
