"""Pseudo-rehearsal: on texts of random words, the trained model has to keep the base model's embeddings.

It limits forgetting without data of other domains (Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal",
Connection Science 7(2), 1995). It needs no texts from outside the domain.
"""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor

from pyrite.errors import UserError
from pyrite.training.parallel import embed_share

#: Texts per training step, and the least and greatest number of words in a text: from a query to a short passage.
TEXTS, MIN_WORDS, MAX_WORDS = 24, 6, 48

#: Marks of the start of a word in the vocabularies of SentencePiece and of byte-level BPE.
_WORD_START = "▁Ġ"

#: Offset of Zipf's law (Mandelbrot, 1953), so that the most frequent words do not fill the texts.
_ZIPF_OFFSET = 10


class RandomTexts:
    """Texts of random words from a tokenizer's vocabulary."""

    def __init__(self, vocabulary: Mapping[str, int]):
        """``vocabulary``: the id of each token. Lower ids are taken for more frequent words, as tokenizers assign them.

        Raises:
            UserError: the vocabulary has no words.
        """
        tokens = (token.lstrip(_WORD_START) for token in sorted(vocabulary, key=lambda token: vocabulary[token]))
        letters = (token for token in tokens if token.isalpha())
        self._words = list(dict.fromkeys(token for token in letters if len(token) > 1 or not token.isascii()))
        if not self._words:
            raise UserError("finetune.rehearsal needs a tokenizer with words in its vocabulary. Set it to 0.")
        self._weights = list(accumulate(1 / (_ZIPF_OFFSET + rank) for rank in range(len(self._words))))

    def draw(self, seed: str) -> list[str]:
        """``TEXTS`` texts. The same seed gives the same texts."""
        rng = random.Random(seed)
        return [
            " ".join(rng.choices(self._words, cum_weights=self._weights, k=rng.randint(MIN_WORDS, MAX_WORDS)))
            for _ in range(TEXTS)
        ]


class RehearsalLoss(torch.nn.Module):
    """``loss``, plus ``weight`` times the mean cosine distance of random texts' embeddings to the base model's."""

    def __init__(self, loss: torch.nn.Module, model: SentenceTransformer, base: SentenceTransformer, weight: float):
        super().__init__()
        self.loss, self.model = loss, model
        self._weight, self._texts = weight, RandomTexts(model.tokenizer.get_vocab())
        self._embed_base = base.eval().forward  # a function, not a submodule: the trainer would set it to training mode

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch of (query, positive, negative_1, ...) columns."""
        columns = list(sentence_features)
        loss: Tensor = self.loss(columns, labels)
        if not self.model.training:  # measured to detect divergence; the term starts at 0 and can only rise
            return loss
        features = self._features(columns)
        embedded = embed_share(lambda texts: self.model(dict(texts))["sentence_embedding"].float(), features)
        with torch.no_grad():
            expected = embed_share(lambda texts: self._embed_base(dict(texts))["sentence_embedding"].float(), features)
        with torch.autocast(self.model.device.type, enabled=False):
            forgotten: Tensor = (1 - pairwise_cos_sim(embedded, expected)).mean()
        return loss + self._weight * forgotten

    def _features(self, columns: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The tokens of random texts. They depend on the batch alone, so that a resumed training has the same texts."""
        seed = hashlib.sha256(columns[0]["input_ids"].cpu().numpy().tobytes()).hexdigest()
        features: dict[str, Any] = self.model.preprocess(self._texts.draw(seed))
        return {
            name: value.to(self.model.device) if isinstance(value, Tensor) else value
            for name, value in features.items()
        }
