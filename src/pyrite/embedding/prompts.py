"""The prompts that an embedding model expects before queries and passages."""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import yaml

from pyrite.spec import ModelSpec

_BGE = {"query": "Represent this sentence for searching relevant passages: "}
_BGE_ZH = {"query": "为这个句子生成表示以用于检索相关文章："}
_E5 = {"query": "query: ", "document": "passage: "}
_NOMIC = {"query": "search_query: ", "document": "search_document: "}
_ARCTIC_2 = {"query": "query: "}

#: The names that configurations give to their retrieval prompts. The first name with a text applies.
_NAMES = {
    "query": ("query", "search_query", "retrieval_query", "s2p_query"),
    "document": ("document", "passage", "corpus", "search_document", "retrieval_document", "retrieval_passage"),
}

#: The last word of other names of retrieval prompts, such as "web_search.query".
_LAST_WORDS = {"query": ("query", "queries"), "document": ("document", "passage", "doc")}

#: What a prompt is prepended to, in messages.
_LABELS = {"query": "queries", "document": "passages"}

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

#: Parts of the names of well-known models that need no prompts, by their model cards.
_WITHOUT_PROMPTS = (
    "all-minilm",
    "all-mpnet",
    "all-distilroberta",
    "multi-qa-",
    "msmarco-",
    "paraphrase-",
    "gte-small",
    "gte-base",
    "gte-large",
    "bge-m3",
    "contriever",
)


class Prompt(NamedTuple):
    """A prompt's text, and where it comes from.

    Attributes:
        name: the prompt's name in the model's configuration; empty if it comes from elsewhere.
        family: the family that the model seems to belong to; empty if the prompt comes from elsewhere.
        evidence: where the family's name was found.
    """

    text: str = ""
    name: str = ""
    family: str = ""
    evidence: str = ""


def resolve_prompts(folder: Path, spec: ModelSpec) -> dict[str, str]:
    """The prompts for queries ("query") and passages ("document").

    For each, the RunSpec's prompt is used; if unset, the model folder's; if that is empty, the model family's.
    """
    return {kind: prompt.text for kind, prompt in _choose(folder, spec).items()}


def saved_prompts(folder: Path) -> dict[str, str]:
    """The prompts that ``encode_query`` and ``encode_document`` of sentence-transformers use for the model folder."""
    texts = _texts(_configuration(folder))
    return {kind: texts.get(kind, "") for kind in _NAMES}


def prompt_notes(folder: Path, spec: ModelSpec) -> list[str]:
    """What a user should know about the prompts: guessed ones, unused ones, and that there are none."""
    if spec.query_prompt is not None and spec.passage_prompt is not None:
        return []
    notes, chosen = [], _choose(folder, spec)
    advice = "Set model.query_prompt and model.passage_prompt"
    guessed = {kind: prompt for kind, prompt in chosen.items() if prompt.family}
    if guessed:
        family, evidence = next((prompt.family, prompt.evidence) for prompt in guessed.values())
        texts = ", ".join(f"{_LABELS[kind]} {prompt.text!r}" for kind, prompt in guessed.items())
        notes.append(
            f"the model's configuration has no prompts; those of {family} models are used, because {evidence}: "
            f"{texts}. {advice} if its model card has others."
        )
    used = {prompt.text for prompt in chosen.values()}
    unused = sorted(name for name, text in _texts(_configuration(folder)).items() if text not in used)
    if unused:
        uses = " and ".join(f"{prompt.text!r} for {_LABELS[kind]}" for kind, prompt in chosen.items())
        notes.append(
            f"the model's configuration has prompts that are not used: {', '.join(unused)}. Used: {uses}. {advice} if "
            "another one is meant for retrieval."
        )
    elif not any(prompt.text for prompt in chosen.values()) and _prompts_unknown(folder, spec):
        notes.append(
            f"no prompts are used, because the model's configuration has none. {advice} if its model card has some, "
            "or to '' to hide this message."
        )
    return notes


def _choose(folder: Path, spec: ModelSpec) -> dict[str, Prompt]:
    own, family = _own_prompts(folder), _family_prompts(folder, spec.base)
    settings = {"query": spec.query_prompt, "document": spec.passage_prompt}
    return {
        kind: (own[kind] if own[kind].text else family.get(kind, Prompt())) if text is None else Prompt(text)
        for kind, text in settings.items()
    }


def _own_prompts(folder: Path) -> dict[str, Prompt]:
    """The prompts for queries and passages in the model folder's own configuration; empty if it has none.

    Queries or passages without a prompt of their own get the configuration's default prompt, which ``encode`` of
    sentence-transformers prepends to every text, unless it is the prompt of the other ones.
    """
    config = _configuration(folder)
    texts, default = _texts(config), config.get("default_prompt_name") or ""
    found = {kind: _find_name(kind, texts) for kind in _NAMES}
    for kind, name in found.items():
        if not name and default in texts and not any(_is_for(other, default) for other in _NAMES if other != kind):
            found[kind] = default
    return {kind: Prompt(texts.get(name, ""), name) for kind, name in found.items()}


def _find_name(kind: str, texts: dict[str, str]) -> str:
    """The name in ``texts`` of the prompt for ``kind``; empty if there is none, or if several names may be meant."""
    by_name = {_plain(name): name for name in texts}
    if known := next((by_name[name] for name in _NAMES[kind] if name in by_name), ""):
        return known
    others = [name for name in texts if _is_for(kind, name)]
    return others[0] if len(others) == 1 else ""


def _is_for(kind: str, name: str) -> bool:
    return _plain(name) in _NAMES[kind] or _plain(name).rpartition("_")[2] in _LAST_WORDS[kind]


def _plain(name: str) -> str:
    """``name`` in lower case, with its words joined by underscores: "retrieval.query" is "retrieval_query"."""
    return re.sub(r"\W+", "_", name.lower())


def _configuration(folder: Path) -> dict[str, Any]:
    path = folder / "config_sentence_transformers.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return config


def _texts(config: dict[str, Any]) -> dict[str, str]:
    """The prompts of a configuration that have a text, by name."""
    return {name: text for name, text in (config.get("prompts") or {}).items() if text}


def _family_prompts(folder: Path, base: str) -> dict[str, Prompt]:
    """The prompts of the family of the model ``base`` (a hub id or a folder); empty for an unknown family.

    The family's name may be part of the model's name, or of the names in ``folder``: a copy may have any name. The
    prompt of an instruction-tuned model describes the task, so only model.query_prompt can set it.
    """
    for name, evidence in _model_names(folder, base):
        if "instruct" in name.lower():
            return {}
        if family := next((family for family in _FAMILIES if family in name.lower()), ""):
            return {kind: Prompt(text, "", family, evidence) for kind, text in _FAMILIES[family].items()}
    return {}


def _prompts_unknown(folder: Path, spec: ModelSpec) -> bool:
    """Whether the model is not one of those that need no prompts, by their names."""
    names = [name.lower() for name, _ in _model_names(folder, spec.base)]
    return not any(part in name for name in names for part in _WITHOUT_PROMPTS)


def _model_names(folder: Path, base: str) -> Iterator[tuple[str, str]]:
    """The names of the model and where each was found: its path or id, its configuration, its model card."""
    yield PurePath(base).name, f"of its name {base!r}"
    config = folder / "config.json"
    original = json.loads(config.read_text(encoding="utf-8")).get("_name_or_path") if config.is_file() else None
    if isinstance(original, str):
        yield PurePath(original).name, f"its config.json names {original!r}"
    card = folder / "README.md"
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8", errors="replace")
    names = [match[1] for match in re.finditer(r"^# +(.+)$", text, re.MULTILINE)][:1]
    if text.startswith("---\n"):
        try:
            front_matter = yaml.safe_load(text[4:].partition("\n---")[0])
        except yaml.YAMLError:
            front_matter = None
        results = front_matter.get("model-index") if isinstance(front_matter, dict) else None
        names += [str(each["name"]) for each in results or () if isinstance(each, dict) and "name" in each]
    yield from ((name, f"its README.md names {name!r}") for name in names)
