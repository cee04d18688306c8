"""Models that cannot be measured as they are are refused; what is guessed or unused is reported."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrite.embedding.checks import check_folder, model_notes
from pyrite.errors import UserError
from pyrite.spec import ModelSpec

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model under a name that says nothing."""
    return shutil.copytree(tiny_model, tmp_path / "own")


def configure(folder: Path, **settings: Any) -> None:
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def add_module(folder: Path, name: str, kind: str) -> Path:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": len(modules), "name": str(len(modules)), "path": name, "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / name).mkdir()
    return folder / name


def notes(folder: Path, **settings: Any) -> str:
    return " ".join(model_notes(folder, ModelSpec(base=str(folder), **settings)))


def test_a_pickled_module_is_refused_before_the_first_step(
    model: Path, pyrite: Pyrite, run_file: Path, tmp_path: Path
) -> None:
    """Regression: the run failed at evaluate, after all the work, because hand-over dropped the file."""
    dense = add_module(model, "2_Dense", "sentence_transformers.models.Dense")
    (dense / "config.json").write_text("{}")
    torch.save({}, dense / "pytorch_model.bin")
    result = pyrite("train", run_file, f"model.base={model}")
    assert result.returncode == 2
    message = "".join(result.stderr.split())
    assert "2_Dense/pytorch_model.bin" in message
    assert "save_pretrained" in message
    assert not (tmp_path / "store/runs/small/steps").exists()
    # sentence-transformers reads weights under no other name.
    (dense / "other.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"2_Dense/pytorch_model\.bin"):
        check_folder(model, "model.base")
    (dense / "model.safetensors").write_bytes(b"")
    check_folder(model, "model.base")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"similarity_fn_name": "euclidean"}, "euclidean distance"),
        ({"model_type": "CrossEncoder"}, "is a CrossEncoder"),
    ],
)
def test_other_kinds_of_models_are_refused(model: Path, settings: dict[str, str], message: str) -> None:
    check_folder(model, "model.base")
    configure(model, **settings)
    with pytest.raises(UserError, match=message):
        check_folder(model, "model.base")


def test_a_model_that_lacks_files_is_refused(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is an adapter"):
        check_folder(model, "model.base")
    (model / "adapter_config.json").unlink()
    (model / "1_Pooling/config.json").unlink()
    with pytest.raises(UserError, match=r"1_Pooling/config\.json is missing"):
        check_folder(model, "model.base")


def test_check_reports_guessed_pooling_and_unused_prompts(model: Path, pyrite: Pyrite, run_file: Path) -> None:
    """Regression: mean pooling without a word, so the base was weaker than it is and the gain overstated."""
    (model / "modules.json").unlink()
    configure(model, prompts={"query": "find: ", "classification": "classify: "})
    result = pyrite("check", run_file, f"model.base={model}")
    assert result.returncode == 0, result.stderr
    assert "mean pooling is a guess" in result.stdout
    assert "not used: classification" in result.stdout
    assert "'find: ' for queries" in result.stdout


def test_prompts_without_a_source_are_reported(model: Path) -> None:
    assert "no prompts are used" in notes(model)
    assert notes(model, query_prompt="", passage_prompt="") == ""
    assert notes(shutil.copytree(model, model.parent / "all-MiniLM-copy")) == ""
    assert notes(shutil.copytree(model, model.parent / "my-e5-base")).count("e5-base models") == 1
    configure(model, prompts={"query": "find: ", "document": ""})
    assert notes(model) == ""


def test_replaced_activations_and_dot_products_are_reported(model: Path) -> None:
    dense = add_module(model, "2_Dense", "sentence_transformers.models.Dense")
    (dense / "config.json").write_text(json.dumps({"activation_function": "custom.Swish"}))
    assert "custom.Swish of 2_Dense is replaced by Tanh" in notes(model)
    assert "custom.Swish" not in notes(model, trust_remote_code=True)
    configure(model, similarity_fn_name="dot")
    assert "dot product" in notes(model)
    add_module(model, "3_Normalize", "sentence_transformers.models.Normalize")
    assert "dot product" not in notes(model)
