"""The model card: front matter as the hub reads it, and the facts that a user of sentence-transformers looks for."""

from pathlib import Path

import pytest
import yaml

from pyrite import card
from pyrite.report.data import build
from report.report_factory import make


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("builtin:all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("intfloat/e5-small-v2", "intfloat/e5-small-v2"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("/models/e5-small", None),
        ("s3://bucket/e5-small", None),
    ],
)
def test_the_base_model_is_named_as_the_hub_knows_it_and_the_training_by_its_facts(
    base: str, told: str | None, tiny_model: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    inputs = make(iterations=2, model={"base": base})
    model = SentenceTransformer(str(tiny_model), device="cpu")
    card.write(tmp_path, build(inputs), inputs.spec, inputs.queries, ["labels-v2"], model, tiny_model)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front.get("base_model") == told
    assert ("base_model" in front) == (told is not None)
    examples = [inputs.manifests[f"finetune-{i}"]["summary"]["examples"] for i in (1, 2)]
    for fact in (
        "| maximum sequence length | 128 tokens |",
        "| similarity function | cosine |",
        f"| training examples | {examples[0]:,} in iteration 1; {examples[1]:,} in iteration 2 |",
        "| warm-up | 0.1 of the steps |",
    ):
        assert fact in text
