"""Checks a model folder before the first step: what cannot work is refused, what is guessed is reported."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrite.embedding.prompts import prompt_notes
from pyrite.errors import UserError
from pyrite.spec import ModelSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

#: Endings of pickled weights, which are never read.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

#: Modules of sentence-transformers that have weights.
_WITH_WEIGHTS = frozenset(
    ["CNN", "Dense", "LSTM", "LayerNorm", "StaticEmbedding", "Transformer", "WeightedLayerPooling", "WordEmbeddings"]
)

#: Similarity functions of models whose rankings an inner product gives.
_SIMILARITIES = ("cosine", "dot")

_SAVE_AGAIN = "Load the model once with sentence-transformers, save it with save_pretrained, and set that folder."


def check_folder(folder: Path, setting: str) -> None:
    """Raise UserError if ``folder`` is not a model that Pyrite can measure as it is; the message names ``setting``."""
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        if (folder / "model/modules.json").is_file():  # a run's folder in a store
            advice = f"Set {folder / 'model'}."
        else:
            advice = "Set a folder that sentence-transformers' save_pretrained wrote."
        raise UserError(
            f"{setting}: {folder} is not a model folder: it has neither config.json nor modules.json. {advice}"
        )
    if not list(folder.rglob("*.safetensors")):
        raise UserError(
            f"{setting}: {folder} has no .safetensors weights. Pyrite does not read pickled weights. {_SAVE_AGAIN}"
        )
    for path, kind in _modules(folder):
        _check_module(path, kind, setting)
    config = _read(folder / "config_sentence_transformers.json")
    if (saved := config.get("model_type") or "SentenceTransformer") != "SentenceTransformer":
        raise UserError(
            f"{setting}: {folder} is a {saved} (model_type in config_sentence_transformers.json). Pyrite trains "
            "embedding models: set a SentenceTransformer."
        )
    if (similarity := config.get("similarity_fn_name") or "cosine") not in _SIMILARITIES:
        raise UserError(
            f"{setting}: {folder} compares embeddings by {similarity} distance (similarity_fn_name in "
            f"config_sentence_transformers.json). Pyrite searches by {' or '.join(_SIMILARITIES)}: set one of "
            "them in a copy of the folder if the model works with it, or use another model."
        )


def check_matryoshka(dims: Sequence[int] | None, model: "SentenceTransformer") -> None:
    """Raise UserError if finetune.matryoshka, ``dims``, has a number that is not below the model's dimensions."""
    complete = model.get_embedding_dimension() if dims else None
    if dims and complete and (wrong := [each for each in dims if each >= complete]):
        raise UserError(
            f"finetune.matryoshka: {wrong[0]} is not below {complete}, the number of dimensions of the model's "
            "embeddings, which are trained in any case. Remove it from the list."
        )


def model_notes(folder: Path, spec: ModelSpec) -> list[str]:
    """What is guessed or unused when the model in ``folder`` is loaded, as sentences for the user."""
    notes = []
    if not (folder / "modules.json").is_file():
        architectures = _read(folder / "config.json").get("architectures") or [""]
        pooling = "the last token's embedding" if architectures[0].endswith("ForCausalLM") else "mean pooling"
        notes.append(
            f"the model has no pooling configuration (modules.json is missing), so {pooling} is a guess. If its model "
            "card pools otherwise, the base model's scores are too low and the gain is too high: save it with "
            "sentence-transformers and the right Pooling module, and set model.base to that folder."
        )
    if not spec.trust_remote_code:
        notes += _untrusted_activations(folder)
    if _uses_dot(folder):
        notes.append(
            "the model compares embeddings by dot product: search and scores use it, but the training losses use "
            "cosine similarity."
        )
    return notes + prompt_notes(folder, spec)


def _uses_dot(folder: Path) -> bool:
    """Whether embeddings are compared by a dot product that differs from the cosine."""
    similarity = _read(folder / "config_sentence_transformers.json").get("similarity_fn_name")
    return similarity == "dot" and not any(kind == "Normalize" for _, kind in _modules(folder))


def _untrusted_activations(folder: Path) -> list[str]:
    """A note for each Dense module whose activation function sentence-transformers replaces by Tanh."""
    names = {
        path.name: str(_read(path / "config.json").get("activation_function", "torch"))
        for path, kind in _modules(folder)
        if kind == "Dense"
    }
    return [
        f"the activation function {name} of {module} is replaced by Tanh, because model.trust_remote_code is false. "
        "Set it to true if you trust the model's code."
        for module, name in names.items()
        if not name.startswith("torch.")
    ]


def _check_module(path: Path, kind: str, setting: str) -> None:
    """Raise UserError if the module in ``path`` lacks its weights or its configuration."""
    if kind == "Pooling" and not (path / "config.json").is_file():
        raise UserError(
            f"{setting}: {path / 'config.json'} is missing, so the model's pooling is unknown. Copy the model again, "
            "with all folders that modules.json names."
        )
    if (path / "adapter_config.json").is_file():
        raise UserError(
            f"{setting}: {path} is an adapter, and its weights are only a part of the model. Merge it into its base "
            "model (merge_and_unload in PEFT), save the result with save_pretrained, and set that folder."
        )
    nested = [each for each in path.rglob("*") if each.is_dir()] if kind == "Router" else []
    for place in (path, *nested):
        files = sorted(place.iterdir()) if place.is_dir() else []
        pickled = next((file for file in files if file.suffix in PICKLED and file.name != "training_args.bin"), None)
        # Only transformers reads weights in several files; other modules read model.safetensors or pickled weights.
        names = {file.name for file in files if file.suffix == ".safetensors"}
        found = names if kind in ("Transformer", "Router") else names & {"model.safetensors"}
        if not found and (pickled or kind in _WITH_WEIGHTS):
            what = f"{pickled} holds pickled weights" if pickled else f"{place} has no weights"
            raise UserError(
                f"{setting}: {what}, and Pyrite neither reads nor downloads pickled weights: each module needs its own "
                f"model.safetensors. {_SAVE_AGAIN}"
            )


def _modules(folder: Path) -> list[tuple[Path, str]]:
    """The folder and the class name of each module of the model; a plain checkpoint is one Transformer."""
    path = folder / "modules.json"
    if not path.is_file():
        return [(folder, "Transformer")]
    return [(folder / each["path"], str(each["type"]).rpartition(".")[2]) for each in json.loads(path.read_text())]


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
