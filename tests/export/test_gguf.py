"""A GGUF file has the model's settings, and models that llama.cpp would embed in another way are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from export.models import PROMPTS, change, prompted
from pyrite.embedding.models import load
from pyrite.errors import UserError
from pyrite.export import FORMATS, layout
from pyrite.spec import ModelSpec

pytest.importorskip("gguf", reason="gguf is not installed (extra: export)")


@pytest.fixture
def plain(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with prompts, in the plain layout."""
    folder = prompted(tiny_model, tmp_path / "model")
    out = tmp_path / "plain"
    layout.save(load(folder, folder, ModelSpec(base=str(folder)), "cpu", precision="float32"), "tiny", out)
    return out


def test_a_file_has_pooling_window_tokenizer_and_weights(plain: Path) -> None:
    from gguf import GGUFReader
    from safetensors.numpy import load_file

    FORMATS["gguf"].write(plain, plain)
    reader = GGUFReader(plain / FORMATS["gguf"].files[0])
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["bert.pooling_type"] == 1
    assert fields["bert.context_length"] == 128
    assert fields["bert.attention.causal"] is False
    assert f"prepend {PROMPTS['query']!r} to each query" in fields["general.description"]
    assert "the embeddings are not normalised" in fields["general.description"]
    vocabulary = json.loads((plain / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == len(vocabulary)
    assert tokens[vocabulary["[SEP]"]] == "[SEP]"
    assert tokens[vocabulary["blood"]] == "\u2581blood"
    assert tokens[vocabulary["##ing"]] == "ing"
    assert fields["tokenizer.ggml.seperator_token_id"] == vocabulary["[SEP]"]
    weights = load_file(plain / "model.safetensors")
    tensors = {each.name: each.data for each in reader.tensors}
    assert tensors["position_embd.weight"].shape == (128, 32)
    original = next(name for name in weights if name.endswith("layer.1.attention.self.key.weight"))
    assert np.array_equal(tensors["blk.1.attn_k.weight"], weights[original])


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("config.json", {"model_type": "roberta"}, "model_type is 'roberta', and the GGUF export supports only 'bert'"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "ByteLevel"}}, "supports only BERT's WordPiece tokenizer"),
    ],
)
def test_other_architectures_are_refused(file: str, settings: dict[str, object], message: str, plain: Path) -> None:
    change(plain / file, **settings)
    with pytest.raises(UserError, match=message):
        FORMATS["gguf"].write(plain, plain)
    assert not (plain / "gguf").exists()
