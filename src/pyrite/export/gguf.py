"""The GGUF format: one file with weights, tokenizer and pooling, for llama.cpp and the programs that are built on it.

Supported are models of the architecture BERT with a WordPiece tokenizer (MiniLM, BGE, E5, GTE and others).
"""

from pathlib import Path
from typing import Any

from pyrite.errors import UserError
from pyrite.export.layout import read_json, read_settings

PACKAGES = ("gguf",)

FILES = ("gguf/model-f32.gguf",)

#: GGUF's name of each pooling that the plain layout may have.
_POOLING = {"mean_tokens": "MEAN", "cls_token": "CLS", "lasttoken": "LAST"}

#: Settings in config.json that llama.cpp's BERT graph has built in.
_FIXED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}

#: Marks the start of a word in llama.cpp's vocabulary, where BERT's marks the continuation of one by "##".
_WORD_START = "\u2581"

#: The special tokens, with the role of each in GGUF.
_SPECIAL = {"[CLS]": "bos", "[SEP]": "sep", "[UNK]": "unk", "[PAD]": "pad", "[MASK]": "mask"}

#: Tensors that an embedding does not depend on.
_UNUSED = ("embeddings.position_ids", "pooler.")


def write(source: Path, out: Path) -> None:
    """Write the model in ``source`` to gguf/model-f32.gguf below ``out``.

    The table of positions is cut to the window, so no program can read further than the model did in training.

    Raises:
        UserError: llama.cpp would compute other embeddings than the model.
    """
    from gguf import MODEL_ARCH, GGUFWriter, PoolingType

    config, tokenizer = read_json(source / "config.json"), read_json(source / "tokenizer.json")
    _check_architecture(source, config)
    _check_tokenizer(source, tokenizer)
    settings = read_settings(source)
    window = settings["window"] or config["max_position_embeddings"]
    file = out / FILES[0]
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(file, "bert")
    writer.add_description(_describe(settings, window))
    writer.add_context_length(window)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType[_POOLING[settings["pooling"]]])
    _add_tokenizer(writer, tokenizer)
    _add_tensors(writer, source, MODEL_ARCH.BERT, config["num_hidden_layers"], window)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check_architecture(source: Path, config: dict[str, Any]) -> None:
    for name, needed in _FIXED.items():
        if (found := config.get(name, needed)) != needed:
            raise UserError(
                f"{source / 'config.json'}: {name} is {found!r}, and the GGUF export supports only {needed!r}. "
                "Leave gguf out of --to, or convert the plain folder with llama.cpp's convert_hf_to_gguf.py and "
                "compare its vectors with serving/vectors.json."
            )


def _check_tokenizer(source: Path, tokenizer: dict[str, Any]) -> None:
    """Raise UserError unless llama.cpp's WordPiece tokenizer splits texts as ``tokenizer`` does."""
    model, normalizer = tokenizer["model"], tokenizer.get("normalizer") or {}
    same = (
        model.get("type", "WordPiece") == "WordPiece"
        and model.get("continuing_subword_prefix") == "##"
        and normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text")
        and normalizer.get("handle_chinese_chars")
        and (tokenizer.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
        and _SPECIAL.keys() <= model["vocab"].keys()
    )
    if not same:
        raise UserError(
            f"{source / 'tokenizer.json'}: the GGUF export supports only BERT's WordPiece tokenizer, and this is "
            f"another one ({model.get('type')}). Leave gguf out of --to."
        )


def _describe(settings: dict[str, Any], window: int) -> str:
    """The settings of the model, in words: llama.cpp does not apply all of them."""
    prompts = [f"prepend {text!r} to each {kind}" for kind, text in settings["prompts"].items() if text]
    parts = [
        f"pooling {settings['pooling']}",
        "normalise the embeddings" if settings["normalised"] else "the embeddings are not normalised",
        f"at most {window} tokens, the final [SEP] included",
        *(prompts or ["no prompts"]),
    ]
    return f"Embedding model: {'; '.join(parts)}."


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any]) -> None:
    """Add the vocabulary, the special tokens and the normalizer of ``tokenizer`` (the content of tokenizer.json)."""
    from gguf import TokenType

    ids: dict[str, int] = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token if token in special else _with_word_start(token) for token in tokens])
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    for token, role in _SPECIAL.items():
        getattr(writer, f"add_{role}_token_id")(ids[token])
    normalizer = tokenizer["normalizer"]
    lowercase = bool(normalizer["lowercase"])
    accents = normalizer.get("strip_accents")
    writer.add_bool("tokenizer.ggml.normalizer.lowercase", lowercase)
    writer.add_bool("tokenizer.ggml.normalizer.strip_accents", lowercase if accents is None else bool(accents))


def _with_word_start(token: str) -> str:
    return token.removeprefix("##") if token.startswith("##") else _WORD_START + token


def _add_tensors(writer: Any, source: Path, architecture: Any, layers: int, window: int) -> None:
    from gguf import get_tensor_name_map
    from safetensors import safe_open

    names = get_tensor_name_map(architecture, layers)
    with safe_open(source / "model.safetensors", "numpy") as tensors:
        for original in tensors.keys():  # noqa: SIM118 - not a mapping
            name = original.removeprefix("bert.")
            if name.startswith(_UNUSED):
                continue
            values = tensors.get_tensor(original).astype("float32")
            if name == "embeddings.position_embeddings.weight":
                values = values[:window]
            new = names.get_name(name, (".weight", ".bias"))
            if new is None:
                raise UserError(
                    f"{source / 'model.safetensors'}: llama.cpp's BERT has no tensor {original}. Leave gguf out of "
                    "--to."
                )
            writer.add_tensor(new, values)
