"""The prompts for queries and passages come from settings, the model's configuration, or its family."""

import json
from pathlib import Path
from typing import Any

import pytest

from pyrite.embedding.prompts import resolve_prompts
from pyrite.spec import ModelSpec


def resolved(folder: Path, **settings: Any) -> tuple[str, str]:
    prompts = resolve_prompts(folder, ModelSpec(base="own", **settings))
    return prompts["query"], prompts["document"]


@pytest.mark.parametrize(
    ("prompts", "default", "expected"),
    [
        ({"s2s_query": "same: ", "s2p_query": "find: "}, None, ("find: ", "")),
        ({"retrieval.query": "q: ", "retrieval.passage": "p: ", "separation": "s: "}, None, ("q: ", "p: ")),
        ({"Retrieval-query": "q: ", "Clustering": "c: "}, None, ("q: ", "")),
        ({"web_query": "web: ", "mail_query": "mail: "}, None, ("", "")),
        ({"query": "", "document": "", "any": "embed: "}, "any", ("embed: ", "embed: ")),
        ({"query": "q: "}, "query", ("q: ", "")),
        ({"query": "q: ", "any": "embed: "}, "any", ("q: ", "embed: ")),
        ({"query": "q: ", "any": "embed: "}, None, ("q: ", "")),
    ],
)
def test_prompts_are_found_under_their_own_names(
    prompts: dict[str, str], default: str | None, expected: tuple[str, str], tmp_path: Path
) -> None:
    config = {"prompts": prompts, "default_prompt_name": default}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
    assert resolved(tmp_path) == expected
    assert resolved(tmp_path, query_prompt="mine: ") == ("mine: ", expected[1])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", json.dumps({"_name_or_path": "intfloat/e5-small-v2"}), ("query: ", "passage: ")),
        ("README.md", "---\nmodel-index:\n- name: e5-small-v2\n---\n# A model\n", ("query: ", "passage: ")),
        ("README.md", "# E5-base-v2\n", ("query: ", "passage: ")),
        ("README.md", "# multilingual-e5-large-instruct\n", ("", "")),
        ("README.md", "# A model\n\nBetter than e5-base.\n", ("", "")),
    ],
)
def test_a_renamed_folder_is_recognized(name: str, content: str, expected: tuple[str, str], tmp_path: Path) -> None:
    """Regression: E5 weights in a folder of another name got no prompts."""
    (tmp_path / name).write_text(content)
    assert resolved(tmp_path) == expected
