"""A run whose training changes nothing chooses the base, and exports it with its prompts and maximum length."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_the_base_is_exported_with_prompts_and_max_length(
    pyrite: Pyrite, run_file: Path, tiny_model: Path, questions: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    base = tmp_path / "e5-small-tiny"
    shutil.copytree(tiny_model, base)
    (base / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    result = pyrite(
        "train",
        run_file,
        "iterations=1",
        "finetune.learning_rate=1e-12",
        f"model={{base: {base}, max_tokens: 64}}",
        f"source={{kind: jsonl, path: {questions}, title: topic}}",
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "store/runs/small/report/report.json").read_text())
    # Without context, the chosen model is the base model.
    assert [row["name"] for row in report["references"]] == ["base-without-context", "bm25"]
    # The embeddings have 32 dimensions, the minimum of truncated ones.
    smaller = {row["name"]: row["comparisons"]["base"]["mrr@5"]["other"] for row in report["smaller"]["rows"]}
    assert list(smaller) == ["float32", "int8", "binary", "binary-rescored"]
    assert smaller["float32"] == pytest.approx(report["means"]["test"]["base"]["mrr@5"], abs=0.05)
    exported = tmp_path / "store/runs/small/model"
    model = SentenceTransformer(str(exported), device="cpu")
    assert (model.prompts["query"], model.prompts["document"]) == ("query: ", "passage: ")
    assert model.max_seq_length == 64

    card = (exported / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    for fact in ("`query: `", "64 tokens", "| dimensions | 32 |", "fingerprint labels-v3", "split | by query"):
        assert card.count(fact) == 1
    assert "topics that are not in the training split" not in card

    found = pyrite("search", "small", "How is gout treated?").stdout
    assert "tuned" not in found
    assert "base model, as chosen" in found
    refused = pyrite("search", tiny_model, "How is gout treated?")
    assert (refused.returncode, "--run RUN" in refused.stderr) == (2, True)
    other = pyrite("search", tiny_model, "How is gout treated?", "--run", "small")
    assert other.returncode == 0, other.stderr
    assert tiny_model.name in other.stdout
