"""Training losses by name: those of sentence-transformers, with this project's settings.

Texts are embedded under the trainer's autocast, but similarities are computed in float32: in bfloat16, the gradient of
the embeddings is off by several percent.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
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
from pyrite.training.parallel import Features, gather, share, take_share
from pyrite.training.rehearsal import RehearsalLoss

#: Weight of queries in the anchor loss, relative to passages. Queries have to move more: they are short, and training
#: has to teach which passages answer them. Passages only have to keep their place among the corpus.
ANCHOR_OF_QUERIES = 0.2

#: Computes the loss from the embeddings of the columns (query, positive, negative_1, ...), each of shape (examples,
#: dims) and in float32, and from the labels, of shape (examples, passages per example), or None.
Function = Callable[[list[Tensor], Tensor | None], Tensor]


def embed(model: SentenceTransformer, columns: Sequence[Features], micro_batch: int) -> list[Tensor]:
    """The float32 embeddings of each column, shape (texts, dims). Columns must have the same number of texts.

    Texts of all columns are embedded in order of length, with less padding, ``micro_batch`` per forward pass. They are
    divided among the training processes.
    """
    if "attention_mask" not in columns[0]:  # a static embedding model: its texts are not padded
        return [model(column)["sentence_embedding"].float() for column in columns]
    rows, width = len(columns[0]["input_ids"]), max(column["input_ids"].shape[1] for column in columns)
    padded = {
        name: torch.cat([functional.pad(column[name], (0, width - column[name].shape[1])) for column in columns])
        for name, value in columns[0].items()
        if isinstance(value, Tensor) and value.ndim == 2
    }
    others = {name: value for name, value in columns[0].items() if not isinstance(value, Tensor)}
    order = torch.argsort(padded["attention_mask"].sum(dim=1), descending=True, stable=True)
    vectors = []
    for chosen in torch.split(share(order), micro_batch):
        length = int(padded["attention_mask"][chosen].any(dim=0).nonzero().max()) + 1
        features = others | {name: value[chosen, :length] for name, value in padded.items()}
        vectors.append(model(features)["sentence_embedding"].float())
    return list(torch.split(gather(torch.cat(vectors), len(order))[torch.argsort(order)], rows))


def _embed_query_and_passages(
    model: SentenceTransformer, columns: Sequence[Features], micro_batch: int
) -> list[Tensor]:
    return [*embed(model, columns[:1], micro_batch), *embed(model, columns[1:], micro_batch)]


def _truncated(embeddings: Sequence[Tensor], dims: int | None) -> list[Tensor]:
    """The first ``dims`` values of each embedding; None: all. They need no normalisation: all losses use cosines."""
    return [each[:, :dims] for each in embeddings]


def _mean_over_dims(function: Function, dims: Sequence[int]) -> Function:
    """The mean of ``function`` over the complete embeddings and their first ``dims`` values.

    A mean, not a sum as in sentence-transformers, so that the weights of the anchor and rehearsal keep their meaning.
    """

    def mean(embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        return torch.stack([function(_truncated(embeddings, each), labels) for each in (None, *dims)]).mean()

    return mean


def _anchor_loss(embeddings: Sequence[Tensor], base: Sequence[Tensor]) -> Tensor:
    """Mean cosine distance of passages to the base model's embeddings, plus ``ANCHOR_OF_QUERIES`` times queries'."""
    queries, *passages = ((1 - pairwise_cos_sim(*pair)).mean() for pair in zip(embeddings, base, strict=True))
    total: Tensor = torch.stack(passages).mean() + ANCHOR_OF_QUERIES * queries
    return total


class EmbeddingLoss(torch.nn.Module):
    """Embeds the columns of a batch, and computes ``function`` in float32, plus the anchor loss.

    Args:
        base: the base model, for finetune.anchor and finetune.train query; else None. It is not trained.
        micro_batch: texts per forward pass.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        function: Function,
        spec: FinetuneSpec,
        base: SentenceTransformer | None,
        micro_batch: int,
    ):
        super().__init__()
        self.model = model
        self._function, self._spec, self._micro_batch = function, spec, micro_batch
        # A function, not a submodule: the trainer would set it to training mode.
        self._embed_base = partial(_embed_query_and_passages, base.eval()) if base else None

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch of (query, positive, negative_1, ...) columns."""
        columns = list(sentence_features)
        base = []
        if self._embed_base:
            with torch.no_grad():
                base = self._embed_base(columns, self._micro_batch)
        if self._spec.train == "query":
            embeddings = [*embed(self.model, columns[:1], self._micro_batch), *base[1:]]
        else:
            embeddings = _embed_query_and_passages(self.model, columns, self._micro_batch)
        with torch.autocast(self.model.device.type, enabled=False):
            loss = self._function(embeddings, labels)
            return loss + self._spec.anchor * _anchor_loss(embeddings, base) if self._spec.anchor else loss


class CachedLoss(CachedMultipleNegativesRankingLoss):  # type: ignore[misc]  # the library is not typed
    """The library's loss with gradient caching, plus the anchor loss, with autocast in both forward passes.

    The second one runs in the backward pass, outside of the trainer's autocast. In float32, a step took 1.5 times as
    long on a CPU with AVX-512 BF16.
    """

    def __init__(
        self, model: SentenceTransformer, spec: FinetuneSpec, base: SentenceTransformer | None, micro_batch: int
    ):
        if has_static_embedding_input(model):
            raise UserError(
                "finetune.loss: cached-multiple-negatives cannot train a static embedding model. "
                "Use multiple-negatives."
            )
        super().__init__(model, scale=spec.scale, mini_batch_size=micro_batch)
        self._anchor, self._dims = spec.anchor, (None, *(spec.matryoshka or ()))
        self._embed_base = partial(_embed_query_and_passages, base.eval()) if base else None
        self._base: list[Tensor] = []
        self._rows = 0

    def embed_minibatch(self, *args: Any, **kwargs: Any) -> Any:
        """The library's method, under autocast."""
        device = self.model.device.type
        with torch.autocast(device, torch.bfloat16, enabled=has_bf16(device)):
            return super().embed_minibatch(*args, **kwargs)

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch of (query, positive, negative_1, ...) columns."""
        columns = list(sentence_features)
        if self._embed_base:
            with torch.no_grad():
                self._base = self._embed_base(columns, self.mini_batch_size)
        self._rows = len(columns[0]["input_ids"])
        loss: Tensor = super().forward([take_share(column) for column in columns], labels)
        return loss

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The library's method, in float32. Each element of ``reps`` holds the mini-batches of a column.

        Of each column, they hold this process's share of the texts.
        """
        with torch.autocast(self.model.device.type, enabled=False):
            parts = [[gather(torch.cat(column).float(), self._rows)] for column in reps]
            losses = [self._loss_of(parts, dims, labels, with_backward) for dims in self._dims]
            loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
            if not self._anchor:
                return loss
            anchor = self._anchor * _anchor_loss([column[0] for column in parts], self._base)
            if with_backward:
                anchor.backward()  # type: ignore[no-untyped-call]
            return loss + anchor.detach() if with_backward else loss + anchor

    def _loss_of(
        self, parts: list[list[Tensor]], dims: int | None, labels: Tensor | None, with_backward: bool
    ) -> Tensor:
        """The library's loss of the truncated embeddings, whose gradient counts as a part of the mean over dims."""
        parts = [_truncated(column, dims) for column in parts]
        if with_backward and len(self._dims) > 1:  # the library computes the gradient of each loss by itself
            for (column,) in parts:
                column.register_hook(lambda gradient: gradient / len(self._dims))  # type: ignore[no-untyped-call]
        loss: Tensor = super().calculate_loss(parts, labels, with_backward=with_backward)
        return loss


def _info_nce(model: SentenceTransformer, spec: FinetuneSpec) -> Function:
    """InfoNCE over the example's negatives and all passages of the batch (van den Oord et al., arXiv 1807.03748)."""
    return MultipleNegativesRankingLoss(model, scale=spec.scale).compute_loss_from_embeddings  # type: ignore[no-any-return]


def _triplet(model: SentenceTransformer, spec: FinetuneSpec) -> Function:
    """max(0, d(q, p) - d(q, n) + margin) on cosine distance. The library's default is Euclidean, margin 5."""
    loss = TripletLoss(model, distance_metric=TripletDistanceMetric.COSINE, triplet_margin=spec.margin)
    return loss.compute_loss_from_embeddings  # type: ignore[no-any-return]


def _distill(model: SentenceTransformer, spec: FinetuneSpec) -> Function:
    """KL divergence between the softmax of the judge's expected grades and that of the scaled cosines
    (Lin et al., arXiv 2010.11386)."""

    def scaled(a: Tensor, b: Tensor) -> Tensor:
        cosines: Tensor = pairwise_cos_sim(a, b)
        return cosines * spec.scale

    return DistillKLDivLoss(model, similarity_fct=scaled).compute_loss_from_embeddings  # type: ignore[no-any-return]


def _graded(model: SentenceTransformer, spec: FinetuneSpec) -> Function:
    """InfoNCE, plus ``finetune.kl_weight`` times the KL divergence to the judge's expected grades."""
    contrastive, divergence = _info_nce(model, spec), _distill(model, spec)
    return lambda embeddings, labels: contrastive(embeddings, labels) + spec.kl_weight * divergence(embeddings, labels)


#: Builds a loss for a model. The other arguments are the base model if a setting needs it, else None, and the number of
#: texts per forward pass.
Build = Callable[[SentenceTransformer, FinetuneSpec, SentenceTransformer | None, int], torch.nn.Module]


def _on_embeddings(function: Callable[[SentenceTransformer, FinetuneSpec], Function]) -> Build:
    def build(
        model: SentenceTransformer, spec: FinetuneSpec, base: SentenceTransformer | None, texts: int
    ) -> EmbeddingLoss:
        loss = function(model, spec)
        return EmbeddingLoss(
            model, _mean_over_dims(loss, spec.matryoshka) if spec.matryoshka else loss, spec, base, texts
        )

    return build


@dataclass(frozen=True)
class Loss:
    """How to build a loss for a model, and whether it needs the column ``label`` (the judge's expected grades)."""

    build: Build
    needs_labels: bool = False


#: The losses by ``finetune.loss``. To add one, add it here and to ``spec.FinetuneSpec.loss``.
#: With gradient caching (Gao et al., arXiv 2101.06983), memory does not grow with the batch size, but each passage is
#: embedded twice.
LOSSES: dict[str, Loss] = {
    "multiple-negatives": Loss(_on_embeddings(_info_nce)),
    "cached-multiple-negatives": Loss(CachedLoss),
    "triplet": Loss(_on_embeddings(_triplet)),
    "distill": Loss(_on_embeddings(_distill), needs_labels=True),
    "graded": Loss(_on_embeddings(_graded), needs_labels=True),
}


def build_loss(
    model: SentenceTransformer, spec: FinetuneSpec, base: SentenceTransformer | None, micro_batch: int
) -> torch.nn.Module:
    """The loss that ``spec`` describes.

    Args:
        base: the base model if ``spec.needs_base``.
        micro_batch: texts per forward pass.
    """
    loss = LOSSES[spec.loss].build(model, spec, base if spec.embeds_batches_with_base else None, micro_batch)
    if not spec.rehearsal:
        return loss
    assert base is not None
    return RehearsalLoss(loss, model, base, spec.rehearsal)
