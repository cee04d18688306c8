"""Encoding: fast arithmetic that agrees with plain arithmetic, and embeddings kept under what decides them."""

import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest

from pyrite.embedding import models
from pyrite.embedding.encoder import Encoder, in_memory
from pyrite.embedding.prompts import resolve_prompts
from pyrite.errors import PyriteError, UserError
from pyrite.progress import NullProgress
from pyrite.spec import ModelSpec, RunSpec, SampleSource
from pyrite.store import FolderStore, open_store
from real.seaweed import environment

TEXTS = [f"{'a long passage about number ' * (i % 7)}{i}" for i in range(40)]


def encoder(folder: Path, base: Path, store: Path, **settings: object) -> Encoder:
    return Encoder(folder, base, RunSpec(name="r", source=SampleSource(), **settings), FolderStore(store))  # type: ignore[arg-type]


def test_batches_and_bf16_give_what_plain_encode_gives(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(tiny_model), device="cpu").encode(TEXTS, normalize_embeddings=True)
    fast = encoder(tiny_model, tiny_model, tmp_path, resources={"encode_tokens": 256}).encode(TEXTS, "document")
    assert fast.shape == plain.shape
    assert np.allclose(np.linalg.norm(fast, axis=1), 1, atol=1e-6)
    assert (np.einsum("ij,ij->i", fast, plain) > 0.999).all()


def test_embeddings_are_kept_under_weights_texts_and_prompts(tiny_model: Path, tmp_path: Path) -> None:
    files = encoder(tiny_model, tiny_model, tmp_path).corpus(in_memory(TEXTS), NullProgress())
    checksum = files[0].stat().st_mtime_ns
    assert (
        encoder(tiny_model, tiny_model, tmp_path).corpus(in_memory(TEXTS), NullProgress())[0].stat().st_mtime_ns
        == checksum
    )
    assert encoder(tiny_model, tiny_model, tmp_path).corpus(in_memory([*TEXTS[:-1], "other"]), NullProgress()) != files
    prompted = encoder(tiny_model, tiny_model, tmp_path, model={"passage_prompt": "passage: "})
    assert prompted.corpus(in_memory(TEXTS), NullProgress()) != files
    # The same name with other weights: what sentence-transformers' own cache would take for the same model.
    other = tmp_path / "copy"
    shutil.copytree(tiny_model, other)
    models.blend(tiny_model, other, 0.5, tmp_path / "same")
    weights = next(other.rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-5] ^= 0x10
    weights.write_bytes(content)
    assert encoder(other, tiny_model, tmp_path).corpus(in_memory(TEXTS), NullProgress()) != files


def test_prompts_of_e5_are_put_before_queries_and_passages_once(tiny_model: Path, tmp_path: Path) -> None:
    named = tmp_path / "e5-small-v2"
    shutil.copytree(tiny_model, named)
    assert resolve_prompts(named, ModelSpec(base=str(named))) == {"query": "query: ", "document": "passage: "}
    by_family = encoder(named, named, tmp_path, model={"base": str(named)}).encode(["rest"], "document")
    by_hand = encoder(tiny_model, tiny_model, tmp_path).encode(["passage: rest"], "document")
    assert np.allclose(by_family, by_hand, atol=1e-6)
    # A model folder that carries its own prompts is believed.
    config = named / "config_sentence_transformers.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "prompts": {"query": "ask: ", "document": "text: "}})
    )
    assert resolve_prompts(named, ModelSpec(base=str(named))) == {"query": "ask: ", "document": "text: "}
    assert resolve_prompts(named, ModelSpec(base=str(named), query_prompt=""))["query"] == ""


@pytest.mark.parametrize(
    ("base", "query"),
    [
        ("/home/me/e5-base-study/gte-small", ""),
        ("intfloat/multilingual-e5-small", "query: "),
        ("intfloat/multilingual-e5-large-instruct", ""),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", "query: "),
        ("Snowflake/snowflake-arctic-embed-m-v1.5", "Represent this sentence for searching relevant passages: "),
    ],
)
def test_a_family_is_known_by_the_models_own_name(base: str, query: str, tmp_path: Path) -> None:
    assert resolve_prompts(tmp_path, ModelSpec(base=base))["query"] == query


@pytest.mark.real
def test_a_base_on_s3_is_the_one_that_lies_there(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: its address is taken for a hub id, so a cluster has no base but the hub's."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYRITE_CACHE", str(tmp_path / "cache"))
    url = f"s3://pyrite/{uuid.uuid4().hex}"
    store = open_store(url)
    store.write("data/e5-small-tiny/notes.jsonl", b"")
    with pytest.raises(UserError, match=r"MODEL: there is neither a file nor a folder at .*/nothing"):
        models.base_folder(f"{url}/data/nothing", None, "MODEL")
    with pytest.raises(UserError, match="is not a model folder"):
        models.base_folder(f"{url}/data/e5-small-tiny", None)
    for path in (path for path in tiny_model.rglob("*") if path.is_file()):
        store.write(f"data/e5-small-tiny/{path.relative_to(tiny_model).as_posix()}", path.read_bytes())
    for base in (f"{url}/data/e5-small-tiny", f"{url}/data/e5-small-tiny/"):
        folder = models.base_folder(base, None)
        assert models.model_digest(folder) == models.model_digest(tiny_model)
        assert resolve_prompts(folder, ModelSpec(base=base)) == {"query": "query: ", "document": "passage: "}


def test_a_base_of_the_hubs_where_the_hub_is_shut_says_what_opens_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: on a cluster, "check the name and the network", and both are right."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"networkPolicy\.allowHub=true"):
        models.base_folder("pyrite/no-such-model", None)


def test_a_base_in_other_files_with_other_names_is_blended(plain_base: Path, tmp_path: Path) -> None:
    """The bug: after the first training, a checkpoint as published has no tensor of the names that training wrote."""
    from safetensors.numpy import load_file, save_file

    models.resave(plain_base, ModelSpec(base=str(plain_base)), tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "tuned")
    weights = tmp_path / "tuned/model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + np.float32(1) for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    models.blend(tmp_path / "base", tmp_path / "tuned", 0.25, tmp_path / "blend")
    blended = load_file(tmp_path / "blend/model.safetensors")
    published = {name: each for path in plain_base.glob("*.safetensors") for name, each in load_file(path).items()}
    name = "embeddings.word_embeddings.weight"
    assert np.allclose(blended[name], published[f"bert.{name}"] + 0.25, atol=1e-5)


def test_a_blend_is_the_weighted_mean_of_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    weights = next(other.rglob("*.safetensors"))
    tensors = load_file(weights)
    save_file({name: tensor + np.float32(1) for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    models.blend(tiny_model, other, 0.25, tmp_path / "blend")
    blended = load_file(next((tmp_path / "blend").rglob("*.safetensors")))
    for name, tensor in tensors.items():
        if tensor.dtype == np.float32:
            assert np.allclose(blended[name], tensor + 0.25, atol=1e-5)
    save_file({"another": np.zeros(3, np.float32)}, weights, metadata={"format": "pt"})
    with pytest.raises(PyriteError, match="cannot be blended"):
        models.blend(tiny_model, other, 0.25, tmp_path / "no")


def test_passages_over_the_window_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    assert encoder(tiny_model, tiny_model, tmp_path).count_truncated(["short", "word " * 200]) == 1
