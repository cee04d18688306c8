"""Search: time and peak memory of the stage retrieve with 1,000,000 synthetic passages of 384 dims and 1,000 queries.

Usage: python scripts/bench_search.py [--passages N] [--queries N]

The packaged model encodes the queries. Passages get random embeddings, which are stored and searched like real ones:
encoding so many passages takes hours on a CPU, and bench_encode.py measures it. The last line is JSON. The exit code is
1 if the peak memory is above 2 GiB.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pyrite import tables
from pyrite.embedding.encoder import Encoder, Kind
from pyrite.embedding.models import base_folder
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import RunSpec, SampleSource
from pyrite.stages.context import StepContext
from pyrite.stages.retrieve import retrieve
from pyrite.store import checksum_file, open_store

DIMS = 384
ROWS = 20_000
MAX_MEBIBYTES = 2048
WORDS = ("fever", "cough", "sleep", "heart", "blood", "kidney", "pain", "doctor", "children", "treatment", "medicine")


class _RandomPassageEncoder(Encoder):
    """Encodes queries with the model, and passages as random unit vectors."""

    def encode(
        self, texts: Sequence[str], kind: Kind, done: Callable[[int], None] = lambda _: None
    ) -> npt.NDArray[np.float32]:
        if kind == "query":
            return super().encode(texts, kind, done)
        vectors = np.random.default_rng(len(texts)).normal(size=(len(texts), DIMS)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_passages(path: Path, count: int) -> None:
    """Write a corpus of passages of 850 characters in row groups."""
    draw = random.Random(0)
    path.parent.mkdir(parents=True)
    with pq.ParquetWriter(path, tables.PASSAGES, compression="zstd") as writer:
        for start in range(0, count, ROWS):
            rows = [
                {
                    "passage_id": f"{n:016x}",
                    "text": f"{n} " + " ".join(draw.choices(WORDS, k=140)),
                    "title": "a title",
                    "context": "a title",
                    "split": "train" if n % 10 else "test",
                    "parents": [{"document_id": f"d{n}", "start": 0, "end": 850}],
                }
                for n in range(start, min(count, start + ROWS))
            ]
            writer.write_table(pa.Table.from_pylist(rows, tables.PASSAGES))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1_000)
    arguments = parser.parse_args()
    spec = RunSpec(name="bench", source=SampleSource())
    query_rows = [
        {"query_id": f"q{n}", "text": f"what helps against {n}", "split": "train"} for n in range(arguments.queries)
    ]
    qrels_rows = [
        {"query_id": f"q{n}", "passage_id": f"{n * 7 + 1:016x}", "grade": 1} for n in range(arguments.queries)
    ]
    with tempfile.TemporaryDirectory() as folder:
        store, key = open_store(folder), "corpus/passages.parquet"
        passages = Path(folder) / "runs/bench" / key
        write_passages(passages, arguments.passages)
        checksum = checksum_file(passages)
        prepared = {"prepare": {"outputs": [{"key": key, "bytes": checksum.size, "sha256": checksum.sha256}]}}
        context = StepContext(spec, Step("retrieve", 1), store, "runs/bench", prepared, "scratch", NullProgress())
        base = base_folder(spec.model.base, None)
        start_time = time.perf_counter()
        pairs = retrieve(
            _RandomPassageEncoder(base, base, spec, store),
            context,
            pa.Table.from_pylist(query_rows, tables.QUERIES),
            pa.Table.from_pylist(qrels_rows, tables.QRELS),
        )
        seconds = time.perf_counter() - start_time
    measured = {
        "passages": arguments.passages,
        "queries": arguments.queries,
        "candidates": pairs.num_candidates,
        "seconds": round(seconds, 1),
        "peak_mebibytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(measured))
    return int(measured["peak_mebibytes"] > MAX_MEBIBYTES)


if __name__ == "__main__":
    sys.exit(main())
