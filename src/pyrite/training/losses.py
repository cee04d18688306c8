"""The losses by name, as sentence-transformers has them, with the settings that this task needs."""

from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    DistillKLDivLoss,
    TripletLoss,
)
from sentence_transformers.sentence_transformer.losses.triplet import TripletDistanceMetric
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor

from pyrite.embedding.models import has_bf16
from pyrite.spec import FinetuneSpec

#: Texts in one forward pass of the cached loss: what a CPU's caches and small GPUs hold.
_MINI_BATCH = 16


class CachedLoss(CachedMultipleNegativesRankingLoss):  # type: ignore[misc]  # the library is not typed
    """The library's loss, with forward passes as wide as their longest text, and in bf16 in both of them.

    The library embeds a second time in the backward pass, where the trainer's autocast does not reach: without this
    that pass, the costlier one, runs in float32 (2.4 times the time of a step on a CPU with AVX-512 BF16).
    """

    def embed_minibatch(self, sentence_feature: dict[str, Any], begin: int, end: int, *args: Any, **kwargs: Any) -> Any:
        """As the library's, without the columns that hold nothing but padding on the right."""
        mask = sentence_feature.get("attention_mask")
        device = self.model.device.type
        if isinstance(mask, Tensor):
            full, rows = mask.shape[1], mask[begin:end]
            width = int(rows.any(dim=0).nonzero().max()) + 1
            sentence_feature = {
                name: value[:, :width] if isinstance(value, Tensor) and value.shape[1:2] == (full,) else value
                for name, value in sentence_feature.items()
            }
        with torch.autocast(device, torch.bfloat16, enabled=has_bf16(device)):
            return super().embed_minibatch(sentence_feature, begin, end, *args, **kwargs)


def _multiple_negatives(model: SentenceTransformer, spec: FinetuneSpec) -> Any:
    """InfoNCE over the example's own negatives and all passages of the batch, with gradient caching
    (van den Oord and others, arXiv 1807.03748; Gao and others, arXiv 2101.06983)."""
    return CachedLoss(model, scale=spec.scale, mini_batch_size=_MINI_BATCH)


def _triplet(model: SentenceTransformer, spec: FinetuneSpec) -> Any:
    """max(0, d(q, p) - d(q, n) + margin) on cosine distance. The library's own default is Euclidean with margin 5."""
    return TripletLoss(model, distance_metric=TripletDistanceMetric.COSINE, triplet_margin=spec.margin)


def _distill(model: SentenceTransformer, spec: FinetuneSpec) -> Any:
    """KL divergence between the softmax of the judge's expected grades and that of scaled cosines
    (Lin and others, arXiv 2010.11386)."""

    def scaled(a: Tensor, b: Tensor) -> Tensor:
        cosines: Tensor = pairwise_cos_sim(a, b)
        return cosines * spec.scale

    return DistillKLDivLoss(model, similarity_fct=scaled)


LOSSES: dict[str, Callable[[SentenceTransformer, FinetuneSpec], Any]] = {
    "multiple-negatives": _multiple_negatives,
    "triplet": _triplet,
    "distill": _distill,
}
