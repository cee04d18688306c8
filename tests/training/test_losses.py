"""The losses: their values, their gradients under autocast, and the terms that limit forgetting."""

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn import functional

from pyrite.spec import FinetuneSpec
from pyrite.training.losses import ANCHOR_OF_QUERIES, LOSSES

#: Texts per forward pass: the batches have several.
MICRO_BATCH = 2

LABELS = torch.tensor([[4.0, 1.0, 2.0], [3.5, 1.5, 1.0], [4.0, 2.0, 1.0]])
TEXTS = (
    ["what is gout", "how is asthma treated in older adults", "rabies"],
    ["gout is a disease of the joints", "asthma is treated with an inhaler", "rabies is fatal"],
    ["mumps", "cholera spreads through water that is not clean", "lupus is a disease of the immune system"],
    ["acne", "vertigo makes people dizzy", "scurvy begins without vitamin C"],
)


class Given(torch.nn.Module):
    """A model whose embeddings are parameters: the token ids of a column are rows of ``vectors``."""

    def __init__(self, vectors: Tensor):
        super().__init__()
        self.vectors = torch.nn.Parameter(vectors)
        self.device = torch.device("cpu")

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.vectors[features["input_ids"][:, 0]]}

    def __getitem__(self, _: int) -> "Given":
        return self


def columns_of(model: Given) -> list[dict[str, Tensor]]:
    ids = torch.arange(len(model.vectors)).reshape(-1, len(LABELS), 1)
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]


def tokenized(model: SentenceTransformer) -> list[dict[str, Any]]:
    return [{**model.preprocess(list(column))} for column in TEXTS]


def test_mining_knows_which_losses_use_grades() -> None:
    assert all(loss.needs_labels == FinetuneSpec(loss=name).uses_grades for name, loss in LOSSES.items())


def similar_vectors() -> Tensor:
    """Vectors of 3 queries, 3 positives and 6 negatives with similarities around 0.9, as in a trained model."""
    torch.manual_seed(0)
    return torch.randn(12, 256) + 3 * torch.randn(256)


def reference(name: str, vectors: Tensor, spec: FinetuneSpec) -> Tensor:
    """The loss ``name`` of ``vectors``, from its definition."""
    queries, *passages = functional.normalize(vectors, dim=1).reshape(-1, len(LABELS), vectors.shape[1])
    own = torch.stack([(queries * column).sum(dim=1) for column in passages], dim=1)
    contrastive = functional.cross_entropy(spec.scale * queries @ torch.cat(passages).T, torch.arange(len(LABELS)))
    divergence = functional.kl_div(
        (spec.scale * own).log_softmax(dim=1), LABELS[:, : own.shape[1]].to(own).softmax(dim=1), reduction="batchmean"
    )
    if name == "triplet":
        return (own[:, 1] - own[:, 0] + spec.margin).clamp(min=0).mean()
    return {"distill": divergence, "graded": contrastive + spec.kl_weight * divergence}.get(name, contrastive)


def assert_equal(loss: Tensor, model: Given, expected: Tensor, exact: Tensor) -> None:
    """Compare the values, and the gradients of ``model`` and ``exact``."""
    expected.backward()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert model.vectors.grad is not None
    assert exact.grad is not None
    assert (model.vectors.grad - exact.grad).norm() < 1e-3 * exact.grad.norm()


def test_every_loss_in_the_spec_is_registered() -> None:
    assert set(get_args(FinetuneSpec.model_fields["loss"].annotation)) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_under_autocast_matches_float64(name: str) -> None:
    """Regression: similarities were computed in bfloat16, and the gradient of the embeddings was off by 6%."""
    spec = FinetuneSpec(loss=name, kl_weight=0.5)
    vectors = similar_vectors()[: 9 if name == "triplet" else 12]
    exact = vectors.double().requires_grad_()
    expected = reference(name, exact, spec)
    model = Given(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name].build(model, spec, None, MICRO_BATCH)(columns_of(model), LABELS)  # type: ignore[arg-type]
    assert_equal(loss, model, expected, exact)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("anchor", [0.0, 0.7])
def test_a_matryoshka_loss_is_the_mean_over_dims(name: str, anchor: float) -> None:
    """The anchor is a term of the complete embeddings alone."""
    spec = FinetuneSpec(loss=name, matryoshka=[8, 16], anchor=anchor)
    vectors = similar_vectors()[: 9 if name == "triplet" else 12]
    before = torch.randn_like(vectors)
    exact = vectors.clone().requires_grad_()
    away = (1 - torch.cosine_similarity(exact, before)).reshape(-1, 3).mean(dim=1)
    of_dims = [reference(name, exact[:, :dims], spec) for dims in (256, 16, 8)]
    expected = torch.stack(of_dims).mean() + anchor * (away[1:].mean() + ANCHOR_OF_QUERIES * away[0])
    model, base = Given(vectors), Given(before) if anchor else None
    loss = LOSSES[name].build(model, spec, base, MICRO_BATCH)(columns_of(model), LABELS)  # type: ignore[arg-type]
    assert_equal(loss, model, expected, exact)


@pytest.mark.parametrize("name", ["multiple-negatives", "cached-multiple-negatives", "graded"])
def test_the_anchor_pulls_embeddings_towards_the_base(name: str) -> None:
    vectors, before = similar_vectors(), torch.randn(12, 256)
    exact = vectors.clone().requires_grad_()
    away = (1 - torch.cosine_similarity(exact, before)).reshape(4, 3).mean(dim=1)
    spec = FinetuneSpec(loss=name, anchor=0.7)
    expected = reference(name, exact, spec) + 0.7 * (away[1:].mean() + ANCHOR_OF_QUERIES * away[0])
    model, base = Given(vectors), Given(before)
    loss = LOSSES[name].build(model, spec, base, MICRO_BATCH)(columns_of(model), LABELS)  # type: ignore[arg-type]
    assert_equal(loss, model, expected, exact)
    assert base.vectors.grad is None


def test_query_training_does_not_move_passages(tiny_model: Path) -> None:
    base = SentenceTransformer(str(tiny_model), device="cpu")
    model = copy.deepcopy(base)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))

    def loss(train: str) -> Tensor:
        spec = FinetuneSpec(train=train)
        built = LOSSES["multiple-negatives"].build(model, spec, base, MICRO_BATCH).train()
        assert not base.training, "the base model would apply dropout"
        value: Tensor = built(tokenized(model), None)
        return value

    embedded = [model.eval()(column)["sentence_embedding"] for column in tokenized(model)[:1]]
    embedded += [base(column)["sentence_embedding"] for column in tokenized(base)[1:]]
    expected = reference("multiple-negatives", torch.cat(embedded), FinetuneSpec())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert loss("query").item() == pytest.approx(expected.item(), rel=1e-4)
    assert loss("both").item() != pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_do_not_depend_on_the_micro_batch(
    name: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32: losses to 1e-5, gradients to 1e-4 of their norm. A GPU has larger micro-batches than a CPU."""
    monkeypatch.setattr("pyrite.training.losses.has_bf16", lambda _: False)
    spec = FinetuneSpec(loss=name, rehearsal=0)
    results = []
    for micro_batch in (1, 2, 512):
        model = SentenceTransformer(str(tiny_model), device="cpu").eval()
        loss = LOSSES[name].build(model, spec, None, micro_batch)(
            tokenized(model)[: 3 if name == "triplet" else 4], LABELS
        )
        loss.backward()
        gradient = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
        results.append((loss.item(), gradient))
    (expected, gradient), *others = results
    assert gradient.norm() > 0
    for value, found in others:
        assert value == pytest.approx(expected, rel=1e-5)
        assert (found - gradient).norm() < 1e-4 * gradient.norm()
