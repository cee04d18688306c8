"""The plain layout: a sentence-transformers folder with the files and the settings that other loaders look for.

sentence-transformers 6 writes its configuration in a form of its own, from which other loaders do not read the window
and the pooling: they would use defaults. So the configuration is written in the older form, which all of them read.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrite.embedding.models import window
from pyrite.errors import UserError
from pyrite.export.texts import KINDS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

#: The files that a runtime loads: the weights, and the tokenizer.
FILES = ("model.safetensors", "tokenizer.json")

#: The pooling modes that every runtime program can apply, with their names in the older configuration.
_POOLING = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}

#: All keys of the older pooling configuration.
_POOLING_KEYS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")

#: Special tokens that a tokenizer may have, by their names in special_tokens_map.json.
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

#: Settings of a tokenizer's last use, which are not the model's. Some loaders use max_length as the window.
_TRANSIENT = ("is_local", "local_files_only", "max_length", "pad_to_multiple_of", "stride", "truncation_strategy")


def save(model: "SentenceTransformer", name: str, out: Path) -> None:
    """Write ``model`` to the folder ``out`` in the plain layout.

    Args:
        name: the model's name in errors.

    Raises:
        UserError: the model has modules that runtimes other than sentence-transformers cannot apply.
    """
    _check_modules(model, name)
    model.save_pretrained(str(out), create_model_card=False, safe_serialization=True)
    if "auto_map" in read_json(out / "config.json"):
        raise UserError(
            f"{name} runs code of its own (auto_map in config.json), which other runtimes do not have. Serve it with "
            "sentence-transformers."
        )
    length = window(model)
    write_json(out / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    modules = read_json(out / "modules.json")
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{kind}"
        if kind == "Pooling":
            write_json(out / module["path"] / "config.json", _pooling(model))
    write_json(out / "modules.json", modules)
    _limit_tokenizer(out, length)
    tokenizer = model.tokenizer
    special = {each: getattr(tokenizer, each, None) for each in _SPECIAL}
    write_json(out / "special_tokens_map.json", {each: str(token) for each, token in special.items() if token})


def check(source: Path, out: Path) -> None:
    """Raise UserError if the folder ``source`` lacks a file that loaders of the plain layout need."""
    del out  # the plain layout is the export folder
    needed = (*FILES, "config.json", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
    if missing := [name for name in needed if not (source / name).is_file()]:
        raise UserError(
            f"the model has no {' and no '.join(missing)} after it was saved, and other loaders need it. A tokenizer "
            "without tokenizer.json has no fast version; weights in several files are above 50 GB. Use another model."
        )


def _check_modules(model: "SentenceTransformer", name: str) -> None:
    kinds = [type(module).__name__ for module in model]
    if kinds[0] == "Router":
        raise UserError(
            f"{name} has two encoders, one for queries and one for passages (finetune.train: query), and the formats "
            "of other runtimes have one. Serve it with sentence-transformers, or train with finetune.train: both."
        )
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise UserError(
            f"{name} has the modules {', '.join(kinds)}. Runtimes other than sentence-transformers apply a "
            "Transformer, a Pooling and, optionally, a Normalize module. Serve this model with sentence-transformers."
        )
    pooling: Any = model[1]
    if pooling.pooling_mode not in _POOLING or not pooling.include_prompt:
        what = pooling.pooling_mode if pooling.include_prompt else f"{pooling.pooling_mode} without the prompt's tokens"
        raise UserError(
            f"{name} has the pooling {what}. Runtimes other than sentence-transformers apply "
            f"{', '.join(_POOLING)}, with the prompt's tokens. Serve this model with sentence-transformers."
        )


def _pooling(model: "SentenceTransformer") -> dict[str, Any]:
    pooling: Any = model[1]
    used = _POOLING[pooling.pooling_mode]
    keys = {f"pooling_mode_{each}": each == used for each in _POOLING_KEYS}
    return {"word_embedding_dimension": model.get_embedding_dimension(), **keys, "include_prompt": True}


def _limit_tokenizer(out: Path, length: int | None) -> None:
    """Set the window in the tokenizer's own files. Without padding, a loader pads batches to their longest text."""
    path = out / "tokenizer.json"
    tokenizer = read_json(path)
    tokenizer["padding"] = None
    tokenizer["truncation"] = length and {
        "direction": "Right",
        "max_length": length,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    write_json(path, tokenizer)
    path = out / "tokenizer_config.json"
    settings = {key: value for key, value in read_json(path).items() if key not in _TRANSIENT}
    if length:
        settings["model_max_length"] = length
    write_json(path, settings)


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that a runtime must apply, from the files of the plain layout in ``folder``."""
    kinds = {each["type"].rpartition(".")[2]: folder / each["path"] for each in read_json(folder / "modules.json")}
    pooling = read_json(kinds["Pooling"] / "config.json")
    saved = read_json(folder / "config_sentence_transformers.json")
    return {
        "prompts": {kind: (saved.get("prompts") or {}).get(kind) or "" for kind in KINDS},
        "window": read_json(folder / "sentence_bert_config.json")["max_seq_length"],
        "pooling": next(name for name in _POOLING.values() if pooling[f"pooling_mode_{name}"]),
        "normalised": "Normalize" in kinds,
        "similarity": saved.get("similarity_fn_name") or "cosine",
    }


def read_json(path: Path) -> Any:
    """The content of the JSON file ``path``."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to the JSON file ``path``."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
