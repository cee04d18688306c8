"""The prompts that an embedding model expects before queries and passages."""

import json
from pathlib import Path, PurePath

from pyrite.spec import ModelSpec

_BGE = {"query": "Represent this sentence for searching relevant passages: "}
_BGE_ZH = {"query": "为这个句子生成表示以用于检索相关文章："}
_E5 = {"query": "query: ", "document": "passage: "}
_NOMIC = {"query": "search_query: ", "document": "search_document: "}
_ARCTIC_2 = {"query": "query: "}

#: Prompts of well-known model families, from their model cards, for folders without prompts. The first entry that is
#: part of the model's name applies.
_FAMILIES = {
    "e5-small": _E5,
    "e5-base": _E5,
    "e5-large": _E5,
    "bge-small-en": _BGE,
    "bge-base-en": _BGE,
    "bge-large-en": _BGE,
    "bge-small-zh": _BGE_ZH,
    "bge-base-zh": _BGE_ZH,
    "bge-large-zh": _BGE_ZH,
    "snowflake-arctic-embed-m-v2": _ARCTIC_2,
    "snowflake-arctic-embed-l-v2": _ARCTIC_2,
    "snowflake-arctic-embed": _BGE,
    "mxbai-embed-large": _BGE,
    "uae-large": _BGE,
    "nomic-embed-text": _NOMIC,
    "modernbert-embed": _NOMIC,
}


def resolve_prompts(folder: Path, spec: ModelSpec) -> dict[str, str]:
    """The prompts for queries ("query") and passages ("document").

    For each, the RunSpec's prompt is used; if unset, the model folder's; if that is empty, the model family's.
    """
    own, family = folder_prompts(folder), _family_prompts(spec.base)
    settings = {"query": spec.query_prompt, "document": spec.passage_prompt}
    return {
        kind: (own[kind] or family.get(kind, "")) if prompt is None else prompt for kind, prompt in settings.items()
    }


def folder_prompts(folder: Path) -> dict[str, str]:
    """The prompts in the model folder's own configuration; empty if it has none."""
    config = folder / "config_sentence_transformers.json"
    own = json.loads(config.read_text()).get("prompts") or {} if config.is_file() else {}
    names = {"query": ("query", "search_query"), "document": ("document", "passage", "search_document")}
    return {kind: next((own[name] for name in known if own.get(name)), "") for kind, known in names.items()}


def _family_prompts(model: str) -> dict[str, str]:
    """The prompts of the family of ``model`` (a hub id or a folder); empty for an unknown family.

    The prompt of an instruction-tuned model describes the task, so only model.query_prompt can set it.
    """
    name = PurePath(model).name.lower()
    if "instruct" in name:
        return {}
    return next((prompts for part, prompts in _FAMILIES.items() if part in name), {})
