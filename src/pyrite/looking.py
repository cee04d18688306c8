"""Ask two models of a run the same question: what convinces a person."""

from dataclasses import dataclass
from pathlib import Path

from pyrite import tables
from pyrite.embedding.encoder import Encoder
from pyrite.embedding.models import base_folder
from pyrite.embedding.search import read_blocks, top_k
from pyrite.errors import UserError
from pyrite.executors.step import Run
from pyrite.progress import Silent
from pyrite.stages.context import verified, verified_folder


@dataclass(frozen=True)
class Hit:
    """A passage found. ``score`` is cosine similarity."""

    title: str
    text: str
    score: float


def search_both(run: Run, question: str, top: int) -> tuple[list[Hit], list[Hit]]:
    """What the base and the tuned model of a finished run find first for ``question``, over the run's whole corpus.

    Raises:
        UserError: the run has no tuned model yet.
    """
    manifests = run.manifests()
    if "evaluate" not in manifests:
        raise UserError(f"run {run.spec.name} has no model yet; `pyrite status {run.spec.name}` says how far it is.")
    made = [entry for manifest in manifests.values() for entry in manifest["outputs"]]
    tuned = verified_folder(run.store, run.prefix, "model", [e for e in made if e["key"].startswith("model/")])
    passages = next(entry for entry in made if entry["key"] == "corpus/chunks.parquet")
    chunks = tables.read(verified(run.store, run.prefix, passages), tables.CHUNKS)
    texts, titles = chunks["text"].to_pylist(), chunks["title"].to_pylist()
    base = base_folder(run.spec.model.base, run.spec.model.revision)

    def search(folder: Path) -> list[Hit]:
        encoder = Encoder(folder, base, run.spec, run.store)
        blocks = read_blocks(encoder.corpus(texts, Silent()), run.spec.resources.search_block)
        scores, found = top_k(encoder.encode([question], "query"), blocks, min(top, len(texts)))
        return [Hit(titles[i], texts[i], float(s)) for i, s in zip(found[0], scores[0], strict=True)]

    return search(base), search(tuned)
