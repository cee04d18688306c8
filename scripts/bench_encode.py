"""Encoding speed: compares Pyrite's encoder with SentenceTransformer.encode in float32 on the same passages.

Usage: python scripts/bench_encode.py [--passages N] [--rounds N] [MEDQUAD]

The encoders take turns, so that changes in the speed of the machine affect both. The passages are MedQuAD's if its
archive is found, otherwise those of the sample corpus. The last line is JSON. The exit code is 1 if the nearest
neighbours by the two encoders overlap by less than 98%.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from pyrite.embedding.encoder import Encoder
from pyrite.embedding.models import BUILTIN, base_folder
from pyrite.sources import open_source
from pyrite.sources.base import Document
from pyrite.spec import MedquadSource, RunSpec, SampleSource
from pyrite.store import FolderStore

ROOT = Path(__file__).resolve().parents[1]
MEDQUAD = ROOT / "data/medquad-577bd37b96c0.tar.gz"
MIN_OVERLAP = 0.98


def load_passages(path: Path | None, count: int) -> list[str]:
    """At most ``count`` distinct passages, evenly spaced over the corpus."""
    from pyrite.chunking import split_into_passages

    spec = MedquadSource(path=str(path), collections=["NIDDK", "NINDS"]) if path else SampleSource()
    texts = [
        record.text[start:end]
        for record in open_source(spec).records()
        if isinstance(record, Document)
        for start, end in split_into_passages(record.text, 500, 1000)
    ]
    distinct = list(dict.fromkeys(texts))
    step = max(1, len(distinct) // count)
    return distinct[::step][:count]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("medquad", type=Path, nargs="?", default=MEDQUAD if MEDQUAD.exists() else None)
    parser.add_argument("--passages", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    from sentence_transformers import SentenceTransformer

    texts = load_passages(arguments.medquad, arguments.passages)
    base = base_folder(BUILTIN, None)
    plain = SentenceTransformer(str(base))
    ours = Encoder(base, base, RunSpec(name="bench", source=SampleSource()), FolderStore("."))
    plain.encode(texts[:64])
    ours.encode(texts[:64], "document")
    speeds: dict[str, list[float]] = {"plain": [], "ours": []}
    for number in range(arguments.rounds):
        start = time.perf_counter()
        reference = plain.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        speeds["plain"].append(len(texts) / (time.perf_counter() - start))
        start = time.perf_counter()
        vectors = ours.encode(texts, "document")
        speeds["ours"].append(len(texts) / (time.perf_counter() - start))
        print(f"round {number + 1}: plain {speeds['plain'][-1]:.1f}/s, ours {speeds['ours'][-1]:.1f}/s", flush=True)
    k = min(50, len(texts) - 1)
    a, b = (np.argsort(-(e @ e.T), axis=1)[:, :k] for e in (reference, vectors))
    overlap = float(np.mean([len(set(x) & set(y)) / k for x, y in zip(a, b, strict=True)]))
    ratios = [o / p for o, p in zip(speeds["ours"], speeds["plain"], strict=True)]
    print(
        json.dumps(
            {
                "passages": len(texts),
                "plain_per_second": round(statistics.median(speeds["plain"]), 1),
                "ours_per_second": round(statistics.median(speeds["ours"]), 1),
                "ratio": round(statistics.median(ratios), 2),
                f"top_{k}_overlap": round(overlap, 4),
            }
        )
    )
    return int(overlap < MIN_OVERLAP)


if __name__ == "__main__":
    sys.exit(main())
