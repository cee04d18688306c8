"""Search a run's passages with two models, to compare what each ranks first."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pyrite import tables
from pyrite.embedding.encoder import Encoder, in_memory
from pyrite.embedding.models import base_folder
from pyrite.embedding.search import read_blocks, top_k
from pyrite.errors import UserError
from pyrite.evaluation.selection import label
from pyrite.executors.step import Run
from pyrite.plan import BASE
from pyrite.progress import NullProgress
from pyrite.spec import ModelSpec
from pyrite.stages.context import fetch_verified, fetch_verified_folder


@dataclass(frozen=True)
class Hit:
    """A retrieved passage in context. ``score``: the similarity with the query, cosine or dot product."""

    context: str
    text: str
    score: float


class ModelHits(NamedTuple):
    """A model's display name, and the passages that it ranks first."""

    model: str
    hits: list[Hit]


def search_both(run: Run, query: str, top: int, model: str | None = None) -> tuple[ModelHits, ModelHits]:
    """The passages that a run's base model, and its chosen model or ``model``, rank first for ``query``.

    Args:
        model: a model folder, local or on S3, or a hub id. Its own prompts are used.

    Raises:
        UserError: the run has no passages or no model yet, or ``model`` is not a model.
    """
    manifests, spec = run.manifests(), run.spec
    if ("prepare" if model else "evaluate") not in manifests:
        missing = "passages" if model else "chosen model"
        raise UserError(f"run {spec.name} has no {missing} yet; `pyrite status {spec.name}` shows its progress.")
    outputs = [entry for manifest in manifests.values() for entry in manifest["outputs"]]
    entry = next(entry for entry in outputs if entry["key"] == "corpus/passages.parquet")
    passages = tables.read(fetch_verified(run.store, run.prefix, entry), tables.PASSAGES)
    texts, contexts = passages["text"].to_pylist(), passages["context"].to_pylist()
    corpus = in_memory(tables.in_context(passages))
    base = base_folder(spec.model.base, spec.model.revision)

    def search(encoder: Encoder) -> list[Hit]:
        blocks = read_blocks(encoder.corpus(corpus, NullProgress()))
        scores, found = top_k(encoder.encode([query], "query"), blocks, min(top, len(texts)), encoder.device)
        return [Hit(contexts[i], texts[i], float(s)) for i, s in zip(found[0], scores[0], strict=True)]

    if model:
        name, folder = Path(model).name, base_folder(model, None, "MODEL")
        settings = ModelSpec(base=model, trust_remote_code=spec.model.trust_remote_code)
        other = Encoder(folder, folder, spec.model_copy(update={"model": settings}), run.store)
    else:
        name = f"{label(manifests['evaluate']['summary']['chosen'])}, as chosen"
        entries = [entry for entry in outputs if entry["key"].startswith("model/")]
        other = Encoder(fetch_verified_folder(run.store, run.prefix, "model", entries), base, spec, run.store)
    return ModelHits(BASE, search(Encoder(base, base, spec, run.store))), ModelHits(name, search(other))
