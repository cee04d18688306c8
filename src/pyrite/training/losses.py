"""Training losses by name: those of sentence-transformers, with this project's settings."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import has_static_embedding_input
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    DistillKLDivLoss,
    MultipleNegativesRankingLoss,
    TripletLoss,
)
from sentence_transformers.sentence_transformer.losses.triplet import TripletDistanceMetric
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor
from torch.nn import functional

from pyrite.embedding.models import has_bf16
from pyrite.errors import UserError
from pyrite.spec import FinetuneSpec

#: Texts per forward pass, sized for a CPU's caches.
_MICRO_BATCH = 24


class SortedLoss(MultipleNegativesRankingLoss):  # type: ignore[misc]  # the library is not typed
    """The library's loss, but passages of all columns are embedded in order of length, with less padding."""

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch of (anchor, positive, negative_1, ...) columns."""
        anchors, *passages = columns = list(sentence_features)
        if "attention_mask" not in anchors:  # a static embedding model: its texts are not padded
            unsorted: Tensor = super().forward(columns, labels)
            return unsorted
        rows, width = len(passages[0]["input_ids"]), max(column["input_ids"].shape[1] for column in passages)
        padded = {
            name: torch.cat([functional.pad(column[name], (0, width - column[name].shape[1])) for column in passages])
            for name, value in passages[0].items()
            if isinstance(value, Tensor) and value.ndim == 2
        }
        order = torch.argsort(padded["attention_mask"].sum(dim=1), descending=True, stable=True)
        vectors = []
        for chosen in torch.split(order, _MICRO_BATCH):
            length = int(padded["attention_mask"][chosen].any(dim=0).nonzero().max()) + 1
            vectors.append(self._embed({name: value[chosen, :length] for name, value in padded.items()}))
        embedded = torch.split(torch.cat(vectors)[torch.argsort(order)], rows)
        loss: Tensor = self.compute_loss_from_embeddings([self._embed(anchors), *embedded], labels)
        return loss

    def _embed(self, features: dict[str, Tensor]) -> Tensor:
        vectors: Tensor = self.model(features)["sentence_embedding"]
        return vectors.float()


class CachedLoss(CachedMultipleNegativesRankingLoss):  # type: ignore[misc]  # the library is not typed
    """The library's loss with gradient caching, but with autocast in both forward passes.

    The second one runs in the backward pass, outside of the trainer's autocast. In float32, a step took 1.5 times as
    long on a CPU with AVX-512 BF16.
    """

    def embed_minibatch(self, *args: Any, **kwargs: Any) -> Any:
        """The library's method, under autocast."""
        device = self.model.device.type
        with torch.autocast(device, torch.bfloat16, enabled=has_bf16(device)):
            return super().embed_minibatch(*args, **kwargs)


def _multiple_negatives(model: SentenceTransformer, spec: FinetuneSpec) -> Any:
    """InfoNCE over the example's negatives and all passages of the batch (van den Oord et al., arXiv 1807.03748)."""
    return SortedLoss(model, scale=spec.scale)


def _cached_multiple_negatives(model: SentenceTransformer, spec: FinetuneSpec) -> Any:
    """InfoNCE with gradient caching (Gao et al., arXiv 2101.06983): memory does not grow with the batch size, but each
    passage is embedded twice."""
    if has_static_embedding_input(model):
        raise UserError(
            "finetune.loss: cached-multiple-negatives cannot train a static embedding model. Use multiple-negatives."
        )
    return CachedLoss(model, scale=spec.scale, mini_batch_size=_MICRO_BATCH)


def _triplet(model: SentenceTransformer, spec: FinetuneSpec) -> Any:
    """max(0, d(q, p) - d(q, n) + margin) on cosine distance. The library's default is Euclidean, margin 5."""
    return TripletLoss(model, distance_metric=TripletDistanceMetric.COSINE, triplet_margin=spec.margin)


def _distill(model: SentenceTransformer, spec: FinetuneSpec) -> Any:
    """KL divergence between the softmax of the judge's expected grades and that of the scaled cosines
    (Lin et al., arXiv 2010.11386)."""

    def scaled(a: Tensor, b: Tensor) -> Tensor:
        cosines: Tensor = pairwise_cos_sim(a, b)
        return cosines * spec.scale

    return DistillKLDivLoss(model, similarity_fct=scaled)


@dataclass(frozen=True)
class Loss:
    """How to build a loss for a model, and whether it needs the column ``label`` (the judge's expected grades)."""

    build: Callable[[SentenceTransformer, FinetuneSpec], Any]
    needs_labels: bool = False


#: The losses by ``finetune.loss``. To add one, add it here and to ``spec.FinetuneSpec.loss``.
LOSSES: dict[str, Loss] = {
    "multiple-negatives": Loss(_multiple_negatives),
    "cached-multiple-negatives": Loss(_cached_multiple_negatives),
    "triplet": Loss(_triplet),
    "distill": Loss(_distill, needs_labels=True),
}
