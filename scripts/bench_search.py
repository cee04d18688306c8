"""Search: time and memory of an exact search in 1,000,000 synthetic passages of 384 dims for 1,000 queries.

Usage: python scripts/bench_search.py [--passages N] [--queries N] [--rounds N]

First, the search of retrieve, with stored embeddings: time, and peak memory of the process. The packaged model encodes
the queries. Passages get random embeddings, which are stored and searched like real ones: encoding so many passages
takes hours on a CPU, and bench_encode.py measures it. Then Pyrite's search takes turns with those that a user would
choose, on the first 100,000 passages, in memory: a flat index of FAISS, FAISS in blocks (knn_ground_truth), and
semantic_search of sentence-transformers. ratio: median time of the other divided by that of Pyrite, in one process.

The last line is JSON. The exit code is 1 if the peak memory of the first part is above 2 GiB, or if the passages that
two searches find overlap by less than 99.9%.
"""

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from faiss.contrib.exhaustive_search import knn_ground_truth
from sentence_transformers.util import semantic_search

from pyrite import tables
from pyrite.embedding.encoder import Encoder, Kind
from pyrite.embedding.models import base_folder
from pyrite.embedding.search import VectorBlock, top_k
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.spec import RunSpec, SampleSource
from pyrite.stages.context import StepContext
from pyrite.stages.retrieve import retrieve
from pyrite.store import checksum_file, open_store

DIMS = 384
ROWS = 20_000
MAX_MEBIBYTES = 2048
COMPARED, TOP, BLOCK = 100_000, 50, 16_384
MIN_OVERLAP = 0.999
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


def _pyrite(queries: Any, corpus: Any) -> Any:
    blocks = (VectorBlock(start, corpus[start : start + BLOCK]) for start in range(0, len(corpus), BLOCK))
    return top_k(queries, blocks, TOP)[1]


def _faiss_flat(queries: Any, corpus: Any) -> Any:
    index = faiss.IndexFlatIP(corpus.shape[1])
    index.add(corpus)
    return index.search(queries, TOP)[1]


def _faiss_blocks(queries: Any, corpus: Any) -> Any:
    blocks = (corpus[start : start + BLOCK] for start in range(0, len(corpus), BLOCK))
    return knn_ground_truth(queries, blocks, TOP, metric_type=faiss.METRIC_INNER_PRODUCT)[1]


def _semantic_search(queries: Any, corpus: Any) -> Any:
    found = semantic_search(torch.from_numpy(queries), torch.from_numpy(corpus), top_k=TOP)
    return np.array([[hit["corpus_id"] for hit in hits] for hits in found])


SEARCHES = {
    "pyrite": _pyrite,
    "faiss flat": _faiss_flat,
    "faiss in blocks": _faiss_blocks,
    "semantic_search": _semantic_search,
}


def compare(passages: int, queries: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each search in turn, the ratio to Pyrite's, and the overlap with its result."""
    generator = np.random.default_rng(0)
    query_vectors, corpus = (generator.normal(size=(rows, DIMS)).astype(np.float32) for rows in (queries, passages))
    for vectors in (query_vectors, corpus):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    seconds: dict[str, list[float]] = {name: [] for name in SEARCHES}
    found = {}
    for turn in range(rounds):
        for name, search in SEARCHES.items():
            start = time.perf_counter()
            found[name] = search(query_vectors, corpus)
            seconds[name].append(time.perf_counter() - start)
            print(f"round {turn + 1}: {name} {seconds[name][-1]:.2f} s", flush=True)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    shared = {
        name: np.mean(
            [len(set(a) & set(b)) / TOP for a, b in zip(rows.tolist(), found["pyrite"].tolist(), strict=True)]
        )
        for name, rows in found.items()
    }
    return {
        name: {
            "seconds": round(median, 2),
            "ratio": round(median / medians["pyrite"], 2),
            "overlap": round(float(shared[name]), 5),
        }
        for name, median in medians.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
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
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    compared = compare(min(COMPARED, arguments.passages), arguments.queries, arguments.rounds)
    measured = {
        "passages": arguments.passages,
        "queries": arguments.queries,
        "candidates": pairs.num_candidates,
        "seconds": round(seconds, 1),
        "peak_mebibytes": peak,
        "compared": compared,
    }
    print(json.dumps(measured))
    return int(peak > MAX_MEBIBYTES or any(each["overlap"] < MIN_OVERLAP for each in compared.values()))


if __name__ == "__main__":
    sys.exit(main())
