"""Pools: how often a blend ranks a passage first that is not in the pool on which validate scores blends.

Usage: python scripts/bench_pools.py STORE RUN [--weights 0.3 0.6 0.8] [--iteration 1]

RUN is a finished run in the local store STORE. Base model, iteration and blends encode the complete corpus. For each
weight: "outside" is the share of a blend's first 10 passages, over the validation queries, that neither base model nor
iteration rank among the query's own first 50: an upper bound, because validate pools those of all queries. "change" is
the relative change of the validation metrics if such passages are left out, and "pool" the number of passages in the
pool of all queries. The last line is JSON.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pyrite import tables
from pyrite.config import load
from pyrite.embedding import models
from pyrite.embedding.encoder import Encoder, in_memory
from pyrite.embedding.search import read_blocks, top_k
from pyrite.evaluation import scoring
from pyrite.executors.step import open_run
from pyrite.progress import NullProgress
from pyrite.stages.found import DEPTH
from pyrite.stages.scoring import RANKED, means, rankings
from pyrite.store import open_store


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("run")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.3, 0.6, 0.8])
    parser.add_argument("--iteration", type=int, default=1)
    arguments = parser.parse_args()
    folder = Path(arguments.store) / "runs" / arguments.run
    if not (folder / f"iterations/{arguments.iteration}/model").is_dir():
        print(f"{folder} has no model of iteration {arguments.iteration}. Finish the run first.", file=sys.stderr)
        return 2
    store = open_store(arguments.store)
    run = open_run(load(folder / "run.yaml"), store)
    passages, queries, qrels = (
        tables.read(folder / f"{name}.parquet", schema)
        for name, schema in (
            ("corpus/passages", tables.PASSAGES),
            ("queries/queries", tables.QUERIES),
            ("queries/qrels", tables.QRELS),
        )
    )
    queries = queries.filter(pc.equal(queries["split"], "val"))
    qrels = qrels.filter(pc.is_in(qrels["query_id"], queries["query_id"].combine_chunks()))
    ids = queries["query_id"].to_pylist(), passages["passage_id"].combine_chunks()
    base = models.base_folder(run.spec.model.base, run.spec.model.revision)

    def find(model: Path) -> tuple[Any, Any]:
        encoder = Encoder(model, base, run.spec, store)
        files = encoder.corpus(in_memory(tables.in_context(passages)), NullProgress())
        return top_k(encoder.encode(queries["text"].to_pylist(), "query"), read_blocks(files), DEPTH, encoder.device)

    def scored(scores: Any, found: Any) -> dict[str, float]:
        return means(scoring.per_query(rankings(ids, scores[:, :RANKED], found[:, :RANKED]), qrels))

    result: dict[str, Any] = {"passages": len(passages), "queries": queries.num_rows}
    with tempfile.TemporaryDirectory() as temporary:
        resaved = Path(temporary) / "base"
        models.resave(base, run.spec.model, resaved)
        tuned = folder / f"iterations/{arguments.iteration}/model"
        pools = np.concatenate([find(base)[1], find(tuned)[1]], axis=1)
        result["pool"] = len(np.unique(pools))
        for weight in arguments.weights:
            models.blend(resaved, tuned, weight, Path(temporary) / str(weight))
            scores, found = find(Path(temporary) / str(weight))
            inside = (found[:, :, None] == pools[:, None, :]).any(axis=2)
            order = np.argsort(~inside, axis=1, kind="stable")
            pooled = np.take_along_axis(scores, order, axis=1), np.take_along_axis(found, order, axis=1)
            complete, left = scored(scores, found), scored(*pooled)
            result[f"{weight:g}"] = {
                "outside": round(float(1 - inside[:, :RANKED].mean()), 5),
                "change": {metric: round(left[metric] / complete[metric] - 1, 5) for metric in ("mrr@5", "dcg@5")},
            }
            print(weight, result[f"{weight:g}"], flush=True)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
