"""Checks a format with a runtime: its embeddings and its speed, compared with those of the trained model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from pyrite.embedding.models import window
from pyrite.errors import UserError
from pyrite.export import parity
from pyrite.export.formats import Format
from pyrite.export.parity import Parity, Variant
from pyrite.export.runtimes import Request, Runtime, how_to_skip
from pyrite.export.runtimes.standalone import texts_per_second
from pyrite.export.source import Source
from pyrite.export.texts import LABELS, Counter, Kind, Text, parity_texts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Floats = npt.NDArray[np.float32]

#: Texts in a batch.
_BATCH = 32
#: Texts of a kind with which a wrong setting is recognised.
_VARIANT_TEXTS = 16
#: The largest ``parity.projection`` that passes. docs/results.md has the values of quantised formats, which are far
#: below.
_MAX_PROJECTION = 0.3
#: Texts with which the speed is measured.
_SPEED_TEXTS = 2 * _BATCH


@dataclass(frozen=True)
class Check:
    """A format that passed the check with a runtime.

    Attributes:
        format, runtime: their names.
        versions: versions of the runtime's packages.
        threshold: the lowest cosine similarity that passes; None if the format is another model.
        parity: the embeddings compared with the trained model's.
        speed, trained_speed: texts per second by batch size, of the runtime and of the trained model.
        bytes: the size on disk of the format.
        notes: the runtime's notes.
    """

    format: str
    runtime: str
    versions: Mapping[str, str]
    threshold: float | None
    parity: Parity
    speed: Mapping[int, float]
    trained_speed: Mapping[int, float]
    bytes: int
    notes: Sequence[str]


@dataclass(frozen=True, eq=False)
class Reference:
    """The trained model, the texts of a check, its embeddings of them, of shape (texts, dims), and its variants."""

    source: Source
    model: "SentenceTransformer"
    texts: list[Text]
    vectors: Floats
    variants: list[Variant]

    @classmethod
    def of(cls, source: Source, model: "SentenceTransformer") -> Self:
        """Embed the texts of a check with the loaded model of ``source``.

        Raises:
            UserError: an embedding is not finite.
        """
        texts = parity_texts(source.corpus, _counter(model), window(model))
        return cls(source, model, texts, _embed(model, texts), _variants(model, texts))


def check(chosen: Format, runtime: Runtime, folder: Path, reference: Reference, min_cosine: float | None) -> Check:
    """Compare a format of the export in ``folder``, embedded by ``runtime``, with the trained model.

    Args:
        min_cosine: the lowest cosine similarity that passes; None: the default of the format. A format that is another
            model always passes.

    Raises:
        UserError: an embedding differs more, or the runtime failed.
    """
    texts, model, source = reference.texts, reference.model, reference.source
    advice = how_to_skip(chosen.name, runtime)
    threshold = chosen.min_cosine if min_cosine is None or chosen.min_cosine is None else min_cosine
    timed = [text.text for text in texts if text.group == "passage"][:_SPEED_TEXTS] or [text.text for text in texts]
    request = Request(chosen.files[0], [t.text for t in texts], [t.kind for t in texts], _BATCH, timed)
    # The trained model's speed is measured before and after, because other load on the machine changes.
    before = _speed(model, timed)
    with TemporaryDirectory() as scratch:
        try:
            result = runtime.embed(folder, request, Path(scratch))
        except UserError as error:
            raise UserError(f"{str(error).rstrip('.')}. {advice}.") from error
    after = _speed(model, timed)
    if result.vectors.shape != reference.vectors.shape:
        raise UserError(
            f"{chosen.name} in {runtime.name} has embeddings of {result.vectors.shape[1]} dimensions, and the trained "
            f"model of {reference.vectors.shape[1]}. {advice}."
        )
    dot = model.similarity_fn_name == "dot"
    found = parity.compare_embeddings(
        reference.vectors, result.vectors, texts, source.corpus, reference.variants, dot, source.statistics
    )
    # A wrong setting also has part of the changes of other settings. Its own has a projection of about 1.
    like = min(
        (name for name, part in found.projections.items() if part > _MAX_PROJECTION),
        key=lambda name: abs(found.projections[name] - 1),
        default=None,
    )
    if threshold is not None and (found.min_cosine < threshold or like):
        cause = f" Its embeddings are like those of the trained model {like}." if like else ""
        raise UserError(
            f"{chosen.name} in {runtime.name} does not embed as the trained model does: the lowest cosine similarity "
            f"is {found.min_cosine:.4f}, and {threshold:g} is required.{cause} The worst texts: "
            f"{parity.describe_worst(found, texts)}. Nothing was written. {advice}"
            f"{'' if like else ', or lower --min-cosine if these differences do not matter to you'}."
        )
    trained = {batch: (before[batch] + after[batch]) / 2 for batch in before}
    return Check(
        chosen.name,
        runtime.name,
        result.versions,
        threshold,
        found,
        result.texts_per_second,
        trained,
        chosen.size(folder),
        result.notes,
    )


def _counter(model: "SentenceTransformer") -> Counter:
    def count(text: str, kind: Kind) -> int:
        prompted = (model.prompts.get(kind) or "") + text
        return len(model.tokenizer(prompted, truncation=False, verbose=False)["input_ids"])

    return count


def _embed(model: "SentenceTransformer", texts: Sequence[Text]) -> Floats:
    vectors: Floats | None = None
    for kind, encode in (("query", model.encode_query), ("document", model.encode_document)):
        own = [position for position, text in enumerate(texts) if text.kind == kind]
        if not own:
            continue
        part = encode([texts[position].text for position in own], batch_size=_BATCH, show_progress_bar=False)
        if vectors is None:
            vectors = np.empty((len(texts), part.shape[1]), dtype=np.float32)
        vectors[own] = part
    assert vectors is not None
    if not np.isfinite(vectors).all():
        raise UserError("the model's embeddings are not finite, so its weights are damaged. Copy or train it again.")
    return vectors


def _variants(model: "SentenceTransformer", texts: Sequence[Text]) -> list[Variant]:
    """The variants of the model that a wrong setting of a runtime would give."""
    natural = {group: [i for i, text in enumerate(texts) if text.group == group] for group in ("query", "passage")}
    few = {group: positions[:_VARIANT_TEXTS] for group, positions in natural.items()}
    found = []

    def add(name: str, positions: list[int]) -> None:
        if positions:
            found.append(Variant(name, positions, _embed(model, [texts[position] for position in positions])))

    prompts = model.prompts
    groups: dict[Kind, str] = {"query": "query", "document": "passage"}
    for kind, group in groups.items():
        if prompts.get(kind):
            with _changed(model, prompts={**prompts, kind: ""}):
                add(f"without the prompt of {LABELS[kind]}", few[group])
    pooling: Any = model[1]
    other = "cls" if pooling.pooling_mode == "mean" else "mean"
    with _changed(pooling, pooling_mode=other):
        add(f"with {other} pooling", few["query"] + few["passage"])
    if (length := window(model)) is not None:
        truncated = [position for position, text in enumerate(texts) if text.group == "long"]
        with _changed(model, max_seq_length=length // 2):
            add("with a shorter window", truncated)
        # RoBERTa does not use two of its positions.
        limit = (getattr(model[0].config, "max_position_embeddings", None) or 0) - 2
        if (longer := min(2 * length, limit)) > length:
            with _changed(model, max_seq_length=longer):
                add("with a longer window", truncated)
    return found


@contextmanager
def _changed(target: Any, **settings: Any) -> Iterator[None]:
    """Change attributes of ``target`` while the body runs."""
    old = {name: getattr(target, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in old.items():
            setattr(target, name, value)


def _speed(model: "SentenceTransformer", texts: Sequence[str]) -> dict[int, float]:
    """Texts per second of the trained model by batch size."""

    def embed(batch: Sequence[str], kind: str) -> Floats:
        del kind
        vectors: Floats = model.encode_document(list(batch), batch_size=len(batch), show_progress_bar=False)
        return vectors

    return {batch: texts_per_second(embed, texts, batch) for batch in (1, _BATCH)}
