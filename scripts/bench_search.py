"""Exact search over 1,000,000 synthetic chunks of 384 dims for 1,000 queries: seconds, and peak memory of the process.

Usage: python scripts/bench_search.py [--chunks N] [--queries N] [--block N]

The embeddings lie on disk in blocks, as the encoder leaves them. The last line is JSON.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pyrite.embedding.search import read_blocks, top_k

DIMS = 384


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--block", type=int, default=65_536)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for start in range(0, arguments.chunks, 50_000):
            block = rng.normal(size=(min(50_000, arguments.chunks - start), DIMS)).astype(np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            files.append(Path(folder) / f"{start:09d}.npy")
            np.save(files[-1], block, allow_pickle=False)
        queries = rng.normal(size=(arguments.queries, DIMS)).astype(np.float32)
        start_time = time.perf_counter()
        top_k(queries, read_blocks(files, arguments.block), 50)
        seconds = time.perf_counter() - start_time
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "chunks": arguments.chunks,
                "queries": arguments.queries,
                "seconds": round(seconds, 1),
                "peak_mebibytes": round(peak),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
