"""Encoding speed: Pyrite's encoder, and SentenceTransformer.encode in float32 alone and with a pool of processes.

Usage: python scripts/bench_encode.py [--passages N] [--rounds N] [MEDQUAD]

The encoders take turns with the same passages, so that changes in the speed of the machine affect all. The passages
are MedQuAD's if its archive is found, otherwise those of the sample corpus. The pool has one process per core, each
with one thread, and has started before the time is taken. The last line is JSON; ratios are medians over the rounds of
Pyrite's speed divided by the other's. The exit code is 1 if the nearest neighbours by Pyrite and by encode overlap by
less than 98%.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from pyrite.embedding.encoder import Encoder
from pyrite.embedding.models import BUILTIN, base_folder
from pyrite.sources import open_source
from pyrite.sources.base import Document
from pyrite.spec import MedquadSource, RunSpec, SampleSource
from pyrite.store import FolderStore

ROOT = Path(__file__).resolve().parents[1]
MEDQUAD = ROOT / "data/medquad-577bd37b96c0.tar.gz"
MIN_OVERLAP = 0.98

Floats = npt.NDArray[np.float32]


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


def ratio(speeds: Sequence[float], others: Sequence[float]) -> float:
    """The median of ``speeds`` divided by ``others``, round by round."""
    return statistics.median(speed / other for speed, other in zip(speeds, others, strict=True))


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
    cores = len(os.sched_getaffinity(0))
    with patch.dict(os.environ, OMP_NUM_THREADS="1"):
        pool = plain.start_multi_process_pool(["cpu"] * cores)
    options = {"normalize_embeddings": True, "show_progress_bar": False}
    encoders: dict[str, Callable[[Sequence[str]], Floats]] = {
        "plain": lambda texts: plain.encode(texts, **options),
        "pool": lambda texts: plain.encode(texts, pool=pool, **options),
        "ours": lambda texts: ours.encode(texts, "document"),
    }
    speeds: dict[str, list[float]] = {name: [] for name in encoders}
    found: dict[str, Floats] = {}
    try:
        for encode in encoders.values():
            encode(texts[:64])
        for number in range(arguments.rounds):
            for name, encode in encoders.items():
                start = time.perf_counter()
                found[name] = encode(texts)
                speeds[name].append(len(texts) / (time.perf_counter() - start))
            print(
                f"round {number + 1}: " + ", ".join(f"{name} {each[-1]:.1f}/s" for name, each in speeds.items()),
                flush=True,
            )
    finally:
        plain.stop_multi_process_pool(pool)
    k = min(50, len(texts) - 1)
    a, b = (np.argsort(-(e @ e.T), axis=1)[:, :k] for e in (found["plain"], found["ours"]))
    overlap = float(np.mean([len(set(x) & set(y)) / k for x, y in zip(a, b, strict=True)]))
    result = {
        "passages": len(texts),
        "per_second": {name: round(statistics.median(each), 1) for name, each in speeds.items()},
        "ratio": {name: round(ratio(speeds["ours"], speeds[name]), 2) for name in ("plain", "pool")},
        f"top_{k}_overlap": round(overlap, 4),
    }
    print(json.dumps(result))
    return int(overlap < MIN_OVERLAP)


if __name__ == "__main__":
    sys.exit(main())
