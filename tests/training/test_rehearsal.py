"""Pseudo-rehearsal: random texts, and a loss that is zero for the base model and grows as the model moves away."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from pyrite.errors import UserError
from pyrite.spec import FinetuneSpec
from pyrite.stages.finetune import _disable_dropout
from pyrite.training.losses import build_loss
from pyrite.training.rehearsal import MAX_WORDS, MIN_WORDS, TEXTS, RandomTexts


def test_random_texts_are_frequent_whole_words() -> None:
    vocabulary = {"[PAD]": 0, "a": 1, "##ing": 2, "▁the": 3, "Ġof": 4, "12": 5, "rare": 6}
    texts = RandomTexts(vocabulary)
    drawn = texts.draw("seed")
    words = [word for text in drawn for word in text.split()]
    assert len(drawn) == TEXTS
    assert all(MIN_WORDS <= len(text.split()) <= MAX_WORDS for text in drawn)
    assert set(words) == {"the", "of", "rare"}
    assert words.count("the") > words.count("rare")
    assert texts.draw("seed") == drawn != texts.draw("other")


def test_a_vocabulary_without_words_is_an_error() -> None:
    with pytest.raises(UserError, match="rehearsal needs a tokenizer with words"):
        RandomTexts({"[PAD]": 0, "1": 1})


def test_rehearsal_is_zero_until_the_model_moves(tiny_model: Path) -> None:
    """Detects a comparison of the model with itself, and texts that differ between two passes over a batch."""
    spec = FinetuneSpec(rehearsal=5.0)
    model, base = (SentenceTransformer(str(tiny_model), device="cpu") for _ in range(2))
    _disable_dropout(model.train())
    batch = [model.preprocess(["what is gout", "what is asthma"]), model.preprocess(["gout is a", "asthma is a"])]
    plain, rehearsed = build_loss(model, FinetuneSpec(rehearsal=0), None, 24), build_loss(model, spec, base, 24)
    assert rehearsed(batch).item() == pytest.approx(plain(batch).item(), abs=1e-5)

    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    moved = rehearsed(batch)
    assert moved.item() > plain(batch).item() + 0.01
    assert moved.item() == rehearsed(batch).item()
    model.eval()
    assert rehearsed(batch).item() == plain(batch).item()
    moved.backward()
    assert all(weight.grad is None for weight in base.parameters())
