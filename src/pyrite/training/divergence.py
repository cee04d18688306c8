"""Detects a training that diverged: weights that are not finite, a higher loss, or embeddings that are all alike."""

from pathlib import Path
from typing import Any

import torch

from pyrite.embedding.models import find_broken_weights

#: Training texts whose embeddings are compared before and after training.
_TEXTS = 32

#: A training diverged if the loss of one of its batches grew by more than this share plus this amount. The amount
#: allows for the noise of losses near 0.
_LOSS_SHARE, _LOSS_AMOUNT = 0.1, 0.1

#: A training diverged if the mean cosine distance of training texts fell below this share of what it was.
_MIN_SPREAD_SHARE = 0.05


class DivergenceCheck:
    """Compares the model of a trainer before training with the model after it, on the same training examples.

    A learning rate that is far too high may leave finite weights and a low logged loss: the model then embeds all
    texts alike. Create it before training.
    """

    def __init__(self, trainer: Any, texts: list[str]):
        """``trainer`` is a SentenceTransformerTrainer, and ``texts`` are passages of its examples."""
        self._trainer = trainer
        self._texts = list(dict.fromkeys(texts))[:_TEXTS]
        self._batch = next(iter(trainer.get_train_dataloader()))
        self._loss, self._spread = self._measure()

    def find(self, folder: Path) -> str:
        """Why the training of the model saved in ``folder`` diverged, in words; empty if it did not."""
        if name := find_broken_weights(folder):
            return f"the trained weights {name} are not finite"
        loss, spread = self._measure()
        if not loss <= (1 + _LOSS_SHARE) * self._loss + _LOSS_AMOUNT:
            return f"the loss of a batch rose from {self._loss:.3f} to {loss:.3f}"
        if self._spread > 0 and not spread >= _MIN_SPREAD_SHARE * self._spread:
            return "the trained model embeds all texts alike"
        return ""

    @torch.no_grad()
    def _measure(self) -> tuple[float, float]:
        """The loss of the batch, and the mean cosine distance between the texts (0 for fewer than two)."""
        model = self._trainer.model
        model.eval()
        with self._trainer.compute_loss_context_manager():
            loss = self._trainer.compute_loss(model, dict(self._batch))
            vectors = model.encode_document(self._texts, convert_to_tensor=True, show_progress_bar=False).float()
        vectors = torch.nn.functional.normalize(vectors, dim=1)
        pairs = len(self._texts) * (len(self._texts) - 1)
        cosines = float((vectors @ vectors.T).sum()) - len(self._texts)
        return float(loss), 1 - cosines / pairs if pairs else 0.0
