"""Ask two models of a run the same question: what convinces a person."""

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
from pyrite.progress import NullProgress
from pyrite.spec import ModelSpec
from pyrite.stages.context import verified, verified_folder


@dataclass(frozen=True)
class Hit:
    """A passage found. ``score`` is cosine similarity."""

    title: str
    text: str
    score: float


class Found(NamedTuple):
    """What a model found first for a question, and what to call the model."""

    model: str
    hits: list[Hit]


def search_both(run: Run, question: str, top: int, model: str | None = None) -> tuple[Found, Found]:
    """What a run's base model and the one that it chose, or ``model``, find first in the run's whole corpus.

    Args:
        model: a model folder, here or on S3, or a hub id; asked with the prompts that are its own.

    Raises:
        UserError: the run has no passages or no model yet, or ``model`` is not one.
    """
    manifests, spec = run.manifests(), run.spec
    if ("prepare" if model else "evaluate") not in manifests:
        what = "passages" if model else "model"
        raise UserError(f"run {spec.name} has no {what} yet; `pyrite status {spec.name}` says how far it is.")
    made = [entry for manifest in manifests.values() for entry in manifest["outputs"]]
    entry = next(entry for entry in made if entry["key"] == "corpus/passages.parquet")
    passages = tables.read(verified(run.store, run.prefix, entry), tables.PASSAGES)
    texts, titles = passages["text"].to_pylist(), passages["title"].to_pylist()
    base = base_folder(spec.model.base, spec.model.revision)

    def search(encoder: Encoder) -> list[Hit]:
        blocks = read_blocks(encoder.corpus(in_memory(texts), NullProgress()), spec.resources.search_block)
        scores, found = top_k(encoder.encode([question], "query"), blocks, min(top, len(texts)))
        return [Hit(titles[i], texts[i], float(s)) for i, s in zip(found[0], scores[0], strict=True)]

    if model:
        name, folder = Path(model).name, base_folder(model, None, "MODEL")
        its_own = ModelSpec(base=model, trust_remote_code=spec.model.trust_remote_code)
        other = Encoder(folder, folder, spec.model_copy(update={"model": its_own}), run.store)
    else:
        name = f"{label(manifests['evaluate']['summary']['chosen'])}, as chosen"
        entries = [entry for entry in made if entry["key"].startswith("model/")]
        other = Encoder(verified_folder(run.store, run.prefix, "model", entries), base, spec, run.store)
    return Found("base", search(Encoder(base, base, spec, run.store))), Found(name, search(other))
