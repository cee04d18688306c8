"""Encodes texts with a model folder, and caches the embeddings of a corpus.

The embeddings are stored in blocks under a digest of weights, texts and settings. After an interruption, only missing
blocks are encoded.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from pyrite.embedding import memory, models
from pyrite.embedding.prompts import resolve_prompts
from pyrite.embedding.search import TILE
from pyrite.errors import UserError
from pyrite.progress import Progress
from pyrite.spec import RunSpec
from pyrite.store import Store
from pyrite.tables import Texts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Kind = Literal["query", "document"]

#: Texts per stored block: small enough that an interruption costs seconds, large enough to batch by length. It is also
#: a tile of the search.
BLOCK = TILE

#: Texts whose tokens are in memory at a time, to count them. The tokenizer needs about 40 kB for a text of 170 tokens.
_TOKENIZED = 1 << 10


@dataclass(frozen=True)
class Encoder:
    """Encodes with the model in ``folder`` and the prompts of the base model in ``base``.

    Inner products of the embeddings are the model's own similarity: embeddings are normalised, unless the model
    compares them by dot product and does not normalise them itself.
    """

    folder: Path
    base: Path
    spec: RunSpec
    store: Store
    precision: models.Precision = "auto"

    @cached_property
    def device(self) -> str:
        return models.device_name(self.spec.resources.device)

    @cached_property
    def model(self) -> "SentenceTransformer":
        return models.load(self.folder, self.base, self.spec.model, self.device, precision=self.precision)

    @cached_property
    def digest(self) -> str:
        """Hex digest of everything that determines an embedding, except its text."""
        spec, prompts = self.spec.model, resolve_prompts(self.base, self.spec.model)
        precision = "bf16" if models.uses_bf16(self.precision, self.device) else "fp32"
        settings = (spec.max_tokens, spec.trust_remote_code, precision)
        parts = (models.model_digest(self.folder), sorted(prompts.items()), *settings)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def encode(
        self, texts: Sequence[str], kind: Kind, on_batch: Callable[[int], None] = lambda _: None
    ) -> npt.NDArray[np.float32]:
        """Float32 embeddings of ``texts``, shape (texts, dims). ``on_batch`` gets the size of each batch.

        Raises:
            UserError: an embedding is not finite.
        """
        from torch.nn import functional

        encode = self.model.encode_query if kind == "query" else self.model.encode_document
        lengths = self._lengths(texts, kind)
        if (limit := models.window(self.model)) is not None:
            lengths = np.minimum(lengths, limit)
        order = np.argsort(-lengths, kind="stable")
        vectors: npt.NDArray[np.float32] | None = None
        for batch in _batches(lengths[order], self._batch_tokens):
            positions = order[batch]
            part = encode(
                [texts[i] for i in positions],
                batch_size=len(positions),
                show_progress_bar=False,
                convert_to_tensor=True,
            )
            if vectors is None:
                vectors = np.empty((len(texts), part.shape[1]), dtype=np.float32)
            part = part.float()
            if not bool(part.isfinite().all()):
                raise UserError(
                    f"{self.folder}: the model's embeddings are not finite, so its weights are damaged or its training "
                    "diverged. Lower finetune.learning_rate; if it is the base model, copy it again."
                )
            # Normalised in float32: in bf16, lengths are off by up to 0.3%, which reorders passages of similar score.
            vectors[positions] = (functional.normalize(part, dim=1) if self.normalises else part).cpu().numpy()
            on_batch(len(positions))
        return vectors if vectors is not None else np.empty((0, 0), dtype=np.float32)

    @cached_property
    def normalises(self) -> bool:
        """Whether embeddings are normalised."""
        from sentence_transformers.sentence_transformer.modules import Normalize

        return self.model.similarity_fn_name == "cosine" or isinstance(self.model[-1], Normalize)

    @cached_property
    def _batch_tokens(self) -> int:
        """Tokens per batch: resources.encode_tokens, or by the device's memory."""
        return self.spec.resources.encode_tokens or memory.encoding_tokens(
            memory.device_memory(self.device), models.size(self.folder)
        )

    def count_truncated(self, texts: Sequence[str]) -> int:
        """How many of the passages ``texts`` are longer than the model's maximum length."""
        limit = models.window(self.model)
        return 0 if limit is None else int((self._lengths(texts, "document") > limit).sum())

    def _lengths(self, texts: Sequence[str], kind: Kind) -> npt.NDArray[np.int64]:
        """Tokens of each text with its prompt, before truncation; shape (texts,)."""
        prompt, tokenizer = self.model.prompts.get(kind) or "", self.model.tokenizer
        lengths: list[int] = []
        for start in range(0, len(texts), _TOKENIZED):
            prompted = [prompt + text for text in texts[start : start + _TOKENIZED]]
            if hasattr(tokenizer, "encode_batch"):  # a static embedding model's, of the package tokenizers
                lengths += [len(each.ids) for each in tokenizer.encode_batch(prompted, add_special_tokens=False)]
            else:
                lengths += map(len, tokenizer(prompted, truncation=False)["input_ids"])
        return np.array(lengths, dtype=np.int64)

    @cached_property
    def passage_encoder(self) -> "Encoder":
        """The encoder of passages: this one; with finetune.train query the base model's, so they are encoded once."""
        is_base = self.spec.finetune.train == "both" or self.folder == self.base
        return self if is_base else replace(self, folder=self.base)

    def corpus(self, texts: Texts, progress: Progress, part: slice = slice(None)) -> list[Path]:
        """Files (.npy) with the float32 embeddings of the passages ``texts``, in order.

        ``part``: the blocks of ``BLOCK`` passages to encode, and whose files are returned; by default all.
        """
        if self.passage_encoder is not self:
            return self.passage_encoder.corpus(texts, progress, part)
        digest, sizes = hashlib.sha256(self.digest.encode()), []
        for block in texts(BLOCK):
            sizes.append(len(block))
            for text in block:
                digest.update(hashlib.sha256(text.encode()).digest())
        prefix = f"embeddings/{digest.hexdigest()[:32]}"
        keys = [f"{prefix}/block-{i:06d}.npy" for i in range(len(sizes))]
        own = keys[part]
        missing = set(own) - set(self.store.keys(prefix))
        if missing:
            progress.begin(
                sum(size for key, size in zip(keys, sizes, strict=True) if key in missing), "passages encoded"
            )
            for key, block in zip(keys, texts(BLOCK), strict=True):
                if key in missing:
                    buffer = io.BytesIO()
                    np.save(buffer, self.encode(block, "document", progress.advance), allow_pickle=False)
                    self.store.write(key, buffer.getvalue())
        return [self.store.fetch(key) for key in own]


def in_memory(texts: Sequence[str]) -> Texts:
    """``texts`` as a ``Texts``."""
    return lambda rows: (texts[start : start + rows] for start in range(0, len(texts), rows))


def _batches(lengths: npt.NDArray[np.int64], tokens: int) -> list[slice]:
    """Slices of texts, sorted longest first: a padded batch has at most ``tokens`` tokens, or one text."""
    slices, start = [], 0
    while start < len(lengths):
        size = int(max(1, min(512, tokens // max(1, lengths[start]))))
        slices.append(slice(start, start + size))
        start += size
    return slices
