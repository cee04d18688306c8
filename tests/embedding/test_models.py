"""Models of other kinds encode and train, and scores are those of the saved model's own similarity."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer

from pyrite.config import load
from pyrite.embedding import models
from pyrite.embedding.encoder import Encoder
from pyrite.errors import UserError
from pyrite.executors.step import open_run, run_step
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import ModelSpec, RunSpec, SampleSource
from pyrite.store import FolderStore, open_store

#: Longer than any window: a text of one-character words.
LONG = "a b c d e f g h " * 100


def encoder(folder: Path, store: Path, precision: models.Precision = "float32", **model: Any) -> Encoder:
    spec = RunSpec(name="r", source=SampleSource(), model=ModelSpec(base=str(folder), **model))
    return Encoder(folder, folder, spec, FolderStore(store), precision)


def save(kind: str, tokenizer: Path, folder: Path, **settings: Any) -> Path:
    """Save a tiny model of another architecture, whose tokenizer does not know the maximum length."""
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel, T5Config, T5EncoderModel

    words = AutoTokenizer.from_pretrained(str(tokenizer), model_max_length=int(1e30))
    size = {"vocab_size": len(words), "num_attention_heads": 2, "num_hidden_layers": 1, "hidden_size": 32}
    if kind == "t5":
        t5 = {"vocab_size": len(words), "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
        T5EncoderModel(T5Config(**t5)).save_pretrained(str(folder / "plain"))
    else:
        roberta = RobertaConfig(**size, intermediate_size=64, max_position_embeddings=514, pad_token_id=1)
        RobertaModel(roberta).save_pretrained(str(folder / "plain"))
    words.save_pretrained(str(folder / "plain"))
    transformer = Transformer(str(folder / "plain"))
    model = SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu", **settings)
    model.save_pretrained(str(folder / kind))
    return folder / kind


@pytest.fixture
def static(tiny_model: Path, tmp_path: Path) -> Path:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    weights = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 16)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, weights)], device="cpu").save_pretrained(
        str(tmp_path / "static")
    )
    return tmp_path / "static"


def test_roberta_truncates_to_its_positions(tiny_model: Path, tmp_path: Path) -> None:
    """Regression: IndexError, because sentence-transformers takes its maximum for 514 tokens, and it is 512."""
    folder = save("roberta", tiny_model, tmp_path)
    model = encoder(folder, tmp_path)
    assert model.encode([LONG, "short"], "document").shape == (2, 32)
    assert model.count_truncated([LONG, "short"]) == 1
    assert models.window(model.model) == 512
    with pytest.raises(UserError, match=r"model\.max_tokens: 513 exceeds the 512 positions"):
        encoder(folder, tmp_path, max_tokens=513).encode([LONG], "document")


def test_an_exported_roberta_has_the_measured_window(tiny_model: Path, tmp_path: Path) -> None:
    folder = save("roberta", tiny_model, tmp_path)
    models.export_base(folder, ModelSpec(base=str(folder)), tmp_path / "exported")
    exported = SentenceTransformer(str(tmp_path / "exported"), device="cpu")
    assert exported.max_seq_length == models.window(encoder(folder, tmp_path).model) == 512
    expected = encoder(folder, tmp_path).encode([LONG], "document")
    assert np.allclose(exported.encode_document([LONG], normalize_embeddings=True), expected, atol=1e-5)


def test_a_model_without_a_maximum_length_encodes(tiny_model: Path, tmp_path: Path) -> None:
    """Regression: OverflowError, because the tokenizer's maximum length is 1e30."""
    folder = save("t5", tiny_model, tmp_path)
    model = encoder(folder, tmp_path)
    assert model.encode([LONG, "short"], "document").shape == (2, 32)
    assert (models.window(model.model), model.count_truncated([LONG])) == (None, 0)
    assert encoder(folder, tmp_path, max_tokens=600).count_truncated([LONG]) == 1


def test_a_static_model_trains_and_blends(static: Path, run_file: Path, tmp_path: Path) -> None:
    """Regression: TypeError, because its tokenizer has another interface."""
    steps = [Step("prepare"), Step("embed", 0, 0), Step("retrieve", 1), Step("judge", 1, 0), Step("judge", 1, 1)]
    run = open_run(load(run_file, [f"model.base={static}"]), open_store(str(tmp_path / "store")))
    for step in (*steps, Step("mine", 1), Step("finetune", 1), Step("embed", 1, 0), Step("validate", 1)):
        summary = run_step(run, step, NullProgress())["summary"]
    assert set(summary["val"]) == {"iteration-1", "iteration-1@0.5"}
    with pytest.raises(UserError, match=r"model\.max_tokens: .* is a static embedding model"):
        encoder(static, tmp_path, max_tokens=64).encode(["text"], "query")


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_scores_are_those_of_the_models_own_similarity(similarity: str, static: Path, tmp_path: Path) -> None:
    config = static / "config_sentence_transformers.json"
    prompts = {"s2p_query": "find: ", "other": "no: "}
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"similarity_fn_name": similarity, "prompts": prompts})
    )
    texts = ["one", "two words", LONG]
    ours = encoder(static, tmp_path)
    scores = ours.encode(texts, "query") @ ours.encode(texts, "document").T
    models.export_base(static, ModelSpec(base=str(static)), tmp_path / "exported")
    saved = SentenceTransformer(str(tmp_path / "exported"), device="cpu")
    assert saved.prompts["query"] == "find: "
    theirs = saved.similarity(saved.encode_query(texts), saved.encode_document(texts)).numpy()
    assert np.allclose(scores, theirs, atol=1e-5)
    assert (abs(scores).max() > 1.01) == (similarity == "dot")


def test_a_base_of_unknown_pooling_is_exported_with_it(tiny_model: Path, tmp_path: Path) -> None:
    plain = shutil.copytree(tiny_model, tmp_path / "plain")
    (plain / "modules.json").unlink()
    models.export_base(plain, ModelSpec(base=str(plain)), tmp_path / "exported")
    assert (tmp_path / "exported/modules.json").is_file()


def test_the_digest_covers_all_files_that_decide(tiny_model: Path, tmp_path: Path) -> None:
    """Regression: vocabularies and code were not in the digest."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    digests = [models.model_digest(model)]
    for name in ("own.py", "1_Pooling/config.json", "spiece.vocab", "chat_template.jinja"):
        (model / name).write_text("changed")
        digests.append(models.model_digest(model))
    assert len(set(digests)) == len(digests)
    for name in ("README.md", "pytorch_model.bin", ".gitattributes"):
        (model / name).write_text("never read")
    assert models.model_digest(model) == digests[-1]


def test_the_base_digest_covers_prompts_and_code(tiny_model: Path, tmp_path: Path) -> None:
    """Regression: a renamed folder got other prompts, and finished steps were not run again."""
    named = shutil.copytree(tiny_model, tmp_path / "e5-base-tiny")
    specs = [ModelSpec(base=str(tiny_model)), ModelSpec(base=str(named))]
    specs.append(ModelSpec(base=str(named), trust_remote_code=True))
    assert len({models.base_digest(spec) for spec in specs}) == len(specs)


def test_precision_is_chosen_and_is_in_the_digest(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    exact = encoder(tiny_model, tmp_path)
    assert exact.model.dtype == torch.float32
    monkeypatch.setattr("pyrite.embedding.models.has_bf16", lambda _: True)
    assert encoder(tiny_model, tmp_path).model.dtype == torch.float32
    fast = encoder(tiny_model, tmp_path, "auto")
    assert fast.model.dtype == torch.bfloat16
    assert fast.digest != exact.digest


def test_embeddings_that_are_not_finite_are_an_error(tiny_model: Path, tmp_path: Path) -> None:
    """Regression: ArrowIndexError, because nothing is near a vector that is not a number."""
    from safetensors.numpy import load_file, save_file

    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][0] = np.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert models.find_broken_weights(tiny_model) == ""
    assert models.find_broken_weights(broken) == "embeddings.LayerNorm.bias"
    with pytest.raises(UserError, match="not finite"):
        encoder(broken, tmp_path).encode(["text"], "query")
