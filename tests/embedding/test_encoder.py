"""Encoding agrees with sentence-transformers, and the cache of embeddings depends on all inputs."""

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


def test_encoding_agrees_with_sentence_transformers(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(tiny_model), device="cpu").encode(TEXTS, normalize_embeddings=True)
    fast = encoder(tiny_model, tiny_model, tmp_path, resources={"encode_tokens": 256}).encode(TEXTS, "document")
    assert fast.shape == plain.shape
    assert np.allclose(np.linalg.norm(fast, axis=1), 1, atol=1e-6)
    assert (np.einsum("ij,ij->i", fast, plain) > 0.999).all()


def test_the_cache_depends_on_weights_texts_and_prompts(tiny_model: Path, tmp_path: Path) -> None:
    files = encoder(tiny_model, tiny_model, tmp_path).corpus(in_memory(TEXTS), NullProgress())
    written = files[0].stat().st_mtime_ns
    again = encoder(tiny_model, tiny_model, tmp_path).corpus(in_memory(TEXTS), NullProgress())
    assert again[0].stat().st_mtime_ns == written
    assert encoder(tiny_model, tiny_model, tmp_path).corpus(in_memory([*TEXTS[:-1], "other"]), NullProgress()) != files
    prompted = encoder(tiny_model, tiny_model, tmp_path, model={"passage_prompt": "passage: "})
    assert prompted.corpus(in_memory(TEXTS), NullProgress()) != files
    # Other weights under the same name.
    other = tmp_path / "copy"
    shutil.copytree(tiny_model, other)
    models.blend(tiny_model, other, 0.5, tmp_path / "same")
    weights = next(other.rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-5] ^= 0x10
    weights.write_bytes(content)
    assert encoder(other, tiny_model, tmp_path).corpus(in_memory(TEXTS), NullProgress()) != files


def test_prompts_of_e5_are_added_once(tiny_model: Path, tmp_path: Path) -> None:
    named = tmp_path / "e5-small-v2"
    shutil.copytree(tiny_model, named)
    assert resolve_prompts(named, ModelSpec(base=str(named))) == {"query": "query: ", "document": "passage: "}
    by_family = encoder(named, named, tmp_path, model={"base": str(named)}).encode(["rest"], "document")
    by_hand = encoder(tiny_model, tiny_model, tmp_path).encode(["passage: rest"], "document")
    assert np.allclose(by_family, by_hand, atol=1e-6)
    # The prompts of the model folder win over those of its family.
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
def test_the_last_part_of_the_name_gives_the_family(base: str, query: str, tmp_path: Path) -> None:
    assert resolve_prompts(tmp_path, ModelSpec(base=base))["query"] == query


@pytest.mark.real
def test_a_base_on_s3_is_downloaded(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: the S3 URL was used as a hub id."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYRITE_CACHE", str(tmp_path / "cache"))
    url = f"s3://pyrite/{uuid.uuid4().hex}"
    store = open_store(url)
    store.write("data/e5-small-tiny/README.md", b"")
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


def test_a_blocked_hub_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: the advice was to check the name and the network, but a setting of the chart blocks the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"networkPolicy\.allowHub=true"):
        models.base_folder("pyrite/no-such-model", None)


def test_a_base_with_other_files_and_names_is_blended(plain_base: Path, tmp_path: Path) -> None:
    """Regression: blending failed, because a published checkpoint has other tensor names than a saved model."""
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


def test_a_blend_is_the_weighted_mean(tiny_model: Path, tmp_path: Path) -> None:
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


def test_truncated_passages_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    assert encoder(tiny_model, tiny_model, tmp_path).count_truncated(["short", "word " * 200]) == 1
