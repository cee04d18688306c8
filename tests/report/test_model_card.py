"""The model card: front matter as the Hugging Face Hub reads it, and the table of facts."""

from pathlib import Path

import pytest
import yaml

from pyrite.report import model_card
from pyrite.report.data import build
from report.report_factory import make, with_title_pairs


@pytest.mark.parametrize(
    ("base", "hub_id"),
    [
        ("builtin:all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("intfloat/e5-small-v2", "intfloat/e5-small-v2"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("/models/e5-small", None),
        ("s3://bucket/e5-small", None),
    ],
)
def test_card_links_the_base_model_and_lists_facts(
    base: str, hub_id: str | None, tiny_model: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    inputs = make(iterations=2, model={"base": base})
    model = SentenceTransformer(str(tiny_model), device="cpu")
    model_card.write(tmp_path, build(inputs), inputs.spec, inputs.queries, ["labels-v2"], model, tiny_model)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front.get("base_model") == hub_id
    assert ("base_model" in front) == (hub_id is not None)
    examples = [inputs.manifests[f"finetune-{i}"]["summary"]["examples"] for i in (1, 2)]
    for fact in (
        "| maximum sequence length | 128 tokens |",
        "| similarity function | cosine |",
        f"| training examples | {examples[0]:,} in iteration 1; {examples[1]:,} in iteration 2 |",
        "| warm-up | 0.1 of the steps |",
        "| passage format | title, line break, text; the text alone if it has no title or starts with it |",
    ):
        assert fact in text


def test_card_names_the_quality_of_smaller_embeddings(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    inputs = make(iterations=1, finetune={"matryoshka": [64]})
    report = build(inputs)
    model = SentenceTransformer(str(tiny_model), device="cpu")
    model_card.write(tmp_path, report, inputs.spec, inputs.queries, ["labels-v2"], model, tiny_model)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    mrr = report["means"]["test"][report["chosen"]]["mrr@5"]
    values = f"float32, 384 dimensions {mrr:.4f}; float32, 64 dimensions {0.9 * mrr:.4f}; int8 {0.99 * mrr:.4f}"
    assert f"| smaller embeddings | MRR@5 on test: {values}" in text
    assert "training optimised 64 dimensions too" in text


@pytest.mark.parametrize(("context", "passage"), [("title", '"a title\\nits text"'), ("none", '"a passage"')])
def test_card_shows_how_to_embed_a_passage(context: str, passage: str, tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    inputs = make(iterations=1, prepare={"context": context})
    model = SentenceTransformer(str(tiny_model), device="cpu")
    model_card.write(tmp_path, build(inputs), inputs.spec, inputs.queries, ["labels-v2"], model, tiny_model)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"model.encode_document([{passage}, " in text
    assert text.count(model_card.PASSAGE_FORMAT[context]) == 2


@pytest.mark.parametrize(
    ("pairs", "chosen", "start", "stated"),
    [
        (7, "iteration-1", "previous", 7),
        (7, "iteration-2@0.3", "previous", 14),
        (7, "iteration-2", "base", 7),
        (7, "base", "previous", None),
        (0, "iteration-2", "previous", None),
    ],
)
def test_card_names_the_title_pairs_of_the_chosen_model(
    pairs: int, chosen: str, start: str, stated: int | None, tiny_model: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    inputs = with_title_pairs(make(iterations=2, finetune={"start": start}), pairs)
    report = build(inputs) | {"chosen": chosen, "smaller": None}
    model = SentenceTransformer(str(tiny_model), device="cpu")
    model_card.write(tmp_path, report, inputs.spec, inputs.queries, ["labels-v2"], model, tiny_model)
    metrics = (tmp_path / "README.md").read_text(encoding="utf-8").split("## Metrics")[1].split("|")[0]
    sentence = f"Training also saw {stated} title-passage pairs" if stated else "One split"
    assert f"searches all passages. {sentence}" in metrics


@pytest.mark.parametrize(
    ("train", "chosen", "stated"),
    [("query", "iteration-1", True), ("query", "base", False), ("both", "iteration-1", False)],
)
def test_card_of_a_query_encoder_says_the_index_stays(
    train: str, chosen: str, stated: bool, tiny_model: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    inputs = make(iterations=1, finetune={"train": train})
    report = build(inputs) | {"chosen": chosen, "smaller": None}
    model = SentenceTransformer(str(tiny_model), device="cpu")
    model_card.write(tmp_path, report, inputs.spec, inputs.queries, ["labels-v2"], model, tiny_model)
    text = " ".join((tmp_path / "README.md").read_text(encoding="utf-8").split())
    assert ("two encoders: `encode_query` uses the trained one, and `encode_document` uses the base" in text) == stated
    assert ("index of the base model stays valid" in text) == stated
