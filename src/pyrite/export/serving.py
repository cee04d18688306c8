"""The files that describe an export: parity.json, test vectors for other loaders, and a section of the model card."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyrite import __version__
from pyrite.embedding.models import model_digest
from pyrite.export.checking import Check
from pyrite.export.formats import FORMATS
from pyrite.export.layout import read_settings, write_json
from pyrite.export.parity import DEPTH, as_json
from pyrite.export.runtimes import Runtime
from pyrite.export.source import Source
from pyrite.export.texts import LABELS, Text
from pyrite.report.formatting import NONE, number, signed, size
from pyrite.report.model_card import template

Floats = npt.NDArray[np.float32]

#: The files that describe an export. PARITY also marks a folder as an export.
PARITY, VECTORS, CARD = "parity.json", "serving/vectors.json", "README.md"

#: Test vectors of each group of texts.
_VECTORS_PER_GROUP = 6

#: Begins the section of the model card, which another export replaces.
_MARK = "<!-- pyrite export -->"

_POOLING = {
    "mean_tokens": "the mean of the token embeddings, without padding",
    "cls_token": "the embedding of the first token",
    "lasttoken": "the embedding of the last token of the text",
}


@dataclass(frozen=True)
class Export:
    """An export that passed: its folder, the checks, and the formats and runtimes that were not checked."""

    folder: Path
    checks: list[Check]
    unchecked: list[tuple[str, Runtime]]


def write_parity(out: Path, source: Source, texts: Sequence[Text], reference: Mapping[str, str], done: Export) -> None:
    """Write parity.json. ``reference`` are the versions of the trained model's packages."""
    content = {
        "pyrite": __version__,
        "model": source.name,
        "model_digest": model_digest(source.folder),
        "reference": {"what": "sentence-transformers, float32, CPU", "versions": dict(reference)},
        "texts": {"total": len(texts), **Counter(text.group for text in texts)},
        "corpus": {
            "what": source.origin,
            "queries": len(source.corpus.queries),
            "passages": len(source.corpus.passages),
            "all_passages": source.corpus_passages,
        },
        "checks": [_check(each) for each in done.checks],
        "not_checked": [
            {"format": name, "runtime": runtime.name, "install": runtime.install} for name, runtime in done.unchecked
        ],
    }
    write_json(out / PARITY, content)


def _check(check: Check) -> dict[str, Any]:
    parity = check.parity
    return {
        "format": check.format,
        "runtime": check.runtime,
        "versions": dict(check.versions),
        "threshold": check.threshold,
        "min_cosine": parity.min_cosine,
        "mean_cosine": parity.mean_cosine,
        "worst": [asdict(each) for each in parity.worst],
        f"top_{DEPTH}_overlap": parity.overlap,
        "metrics": {name: as_json(each) for name, each in parity.metrics.items()},
        "projections": parity.projections,
        "texts_per_second": {str(batch): round(each, 2) for batch, each in check.speed.items()},
        "trained_texts_per_second": {str(batch): round(each, 2) for batch, each in check.trained_speed.items()},
        "bytes": check.bytes,
        "notes": list(check.notes),
    }


def write_vectors(out: Path, texts: Sequence[Text], vectors: Floats) -> None:
    """Write the embeddings of some texts by the trained model, to test loaders in other languages.

    A loader adds the prompt of the text's kind, truncates to the window, pools, and normalises if ``normalised``.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for position, text in enumerate(texts):
        groups[text.group].append(position)
    chosen = [position for each in groups.values() for position in each[:_VECTORS_PER_GROUP]]
    rows = [
        {
            "kind": texts[position].kind,
            "text": texts[position].text,
            "vector": [round(float(each), 7) for each in vectors[position]],
        }
        for position in chosen
    ]
    (out / VECTORS).parent.mkdir(parents=True, exist_ok=True)
    write_json(out / VECTORS, {**read_settings(out), "dims": vectors.shape[1], "vectors": rows})


def write_card(out: Path, source: Source, done: Export) -> None:
    """Add the section "Serving" to the model card of ``source``, or write a card that has only this section."""
    card = source.folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else f"# {source.name}\n"
    text = text.partition(_MARK)[0].rstrip()
    (out / CARD).write_text(f"{text}\n\n{_MARK}\n{_section(out, source, done)}", encoding="utf-8")


def _section(out: Path, source: Source, done: Export) -> str:
    names = dict.fromkeys(check.format for check in done.checks)
    return template("export/serving.md.j2").render(
        settings=read_settings(out),
        pooling=_POOLING,
        labels=LABELS,
        source=source,
        version=__version__,
        vectors=VECTORS,
        depth=DEPTH,
        formats=[FORMATS[name] for name in names],
        rows=[table_row(check) for check in done.checks],
        unchecked=done.unchecked,
    )


def table_row(check: Check) -> dict[str, str]:
    """The cells of a check in a table, by column."""
    parity = check.parity
    batch = max(check.speed)
    compared = parity.metrics.get("mrr@5")
    return {
        "format": check.format,
        "runtime": check.runtime,
        "lowest": cosine(parity.min_cosine),
        "mean": cosine(parity.mean_cosine),
        f"top {DEPTH}": NONE if parity.overlap is None else number(parity.overlap),
        "MRR@5": NONE if compared is None else signed(compared.difference),
        "texts/s": f"{check.speed[batch]:.0f}",
        "speed": f"{check.speed[batch] / check.trained_speed[batch]:.1f}x",
        "size": size(check.bytes),
    }


def cosine(value: float) -> str:
    """A cosine similarity with five digits, rounded down, so that a difference is not shown as 1."""
    return number(int(value * 1e5) / 1e5, 5)
