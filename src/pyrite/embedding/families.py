"""Prompts of well-known families of models, whose folders do not always carry them: from the models' own cards."""

from pathlib import PurePath
from typing import NamedTuple


class Prompts(NamedTuple):
    """What is put before a query and before a passage."""

    query: str
    passage: str


_SENTENCE = Prompts("Represent this sentence for searching relevant passages: ", "")
_SEARCH = Prompts("search_query: ", "search_document: ")
_E5 = Prompts("query: ", "passage: ")
_BGE_ZH = Prompts("为这个句子生成表示以用于检索相关文章：", "")

#: By a part of the model's name; the first that fits.
_FAMILIES = {
    "e5-small": _E5,
    "e5-base": _E5,
    "e5-large": _E5,
    "bge-small-en": _SENTENCE,
    "bge-base-en": _SENTENCE,
    "bge-large-en": _SENTENCE,
    "bge-small-zh": _BGE_ZH,
    "bge-base-zh": _BGE_ZH,
    "bge-large-zh": _BGE_ZH,
    "snowflake-arctic-embed-m-v2": Prompts("query: ", ""),
    "snowflake-arctic-embed-l-v2": Prompts("query: ", ""),
    "snowflake-arctic-embed": _SENTENCE,
    "mxbai-embed-large": _SENTENCE,
    "uae-large": _SENTENCE,
    "nomic-embed-text": _SEARCH,
    "modernbert-embed": _SEARCH,
}


def family_prompts(model: str) -> Prompts:
    """The prompts that the family of ``model`` (a hub id or a folder) needs; empty where none is known.

    A model that takes instructions wants the task in its prompt, which only model.query_prompt can say.
    """
    name = PurePath(model).name.lower()
    if "instruct" in name:
        return Prompts("", "")
    return next((prompts for part, prompts in _FAMILIES.items() if part in name), Prompts("", ""))
