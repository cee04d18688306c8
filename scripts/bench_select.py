"""Selection of a domain: how often the nearest centroid is the query's own domain.

Usage: python scripts/bench_select.py FOLDER [--foreign BEIR ...]

FOLDER holds BEIR folders or archives with splits, as for bench_domains.py. Centroids are computed from the training
queries of each, and the test queries of all are mixed. "accuracy" is the share of them for which the nearest domain is
their own, by the number of centroids: mean, worst and best of several seeds of k-means. "val" is the mean on the
validation queries.

--foreign: data sets of other fields. "rejected" is the share of queries whose score for their nearest domain is below a
minimum: of the mixed test queries, and of each foreign set. The last line is JSON.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bench_common as common
import numpy as np
import numpy.typing as npt
from bench_domains import ARCHIVES, several_domains

from pyrite.embedding.encoder import Encoder
from pyrite.registry.centroids import CENTROIDS, Floats, fit_centroids, nearest_domain
from pyrite.registry.selection import base_encoder, sample_queries
from pyrite.sources import retention
from pyrite.sources.base import Question
from pyrite.sources.beir import Beir
from pyrite.spec import BeirSource, RunSpec
from pyrite.store import open_store

COUNTS = (1, 4, 16, 64)
SEEDS = 5
SPLITS = {"all": "test", "val": "val"}
MINIMA = (0.2, 0.25, 0.3, 0.35, 0.4)


class Embedded(NamedTuple):
    """The embedded queries of a data set, by split: train, val, test."""

    name: str
    splits: dict[str, Floats]


def embed_queries(encoder: Encoder, name: str, path: Path) -> Embedded:
    questions = [each for each in Beir(BeirSource(path=str(path))).records() if isinstance(each, Question)]
    texts = {split: [q.text for q in questions if q.split == split] for split in ("train", "val", "test")}
    texts["train"] = sample_queries(texts["train"], 0)
    print(f"{name}: " + ", ".join(f"{len(each):,} {split}" for split, each in texts.items()), flush=True)
    return Embedded(name, {split: encoder.encode(each, "query") for split, each in texts.items()})


def accuracy(embedded: Sequence[Embedded], k: int, seed: int) -> dict[str, float]:
    """The share of test queries whose nearest domain is their own: of each domain, and of all together.

    "val" is that of the validation queries of all domains.
    """
    centroids = {each.name: fit_centroids(each.splits["train"], k, seed) for each in embedded}

    def right(split: str) -> dict[str, npt.NDArray[np.bool_]]:
        found = {each.name: nearest_domain(each.splits[split], centroids).domains for each in embedded}
        return {name: np.array(selected) == name for name, selected in found.items()}

    shares = {name: float(each.mean()) for name, each in right("test").items()}
    together = {name: float(np.concatenate(list(right(split).values())).mean()) for name, split in SPLITS.items()}
    return {**shares, **together}


def by_count(embedded: Sequence[Embedded]) -> dict[str, Any]:
    result = {}
    for k in COUNTS:
        found = [accuracy(embedded, k, seed) for seed in range(SEEDS)]
        result[str(k)] = {name: round(float(np.mean([each[name] for each in found])), 4) for name in found[0]} | {
            f"all_{end}": round(pick(each["all"] for each in found), 4) for end, pick in (("worst", min), ("best", max))
        }
        print(f"accuracy, k = {k}: " + ", ".join(f"{name} {value:.4f}" for name, value in result[str(k)].items()))
    return result


def rejected(embedded: Sequence[Embedded], foreign: Mapping[str, Floats]) -> dict[str, Any]:
    """The median of the queries' best scores, and the share below each of ``MINIMA``, by set."""
    centroids = {each.name: fit_centroids(each.splits["train"], CENTROIDS, 0) for each in embedded}
    own = {each.name: each.splits["test"] for each in embedded}
    sets = {"test": np.concatenate(list(own.values())), **own, **foreign}
    result: dict[str, Any] = {}
    for name, queries in sets.items():
        best = nearest_domain(queries, centroids).scores.max(axis=1)
        shares = {str(minimum): round(float((best < minimum).mean()), 4) for minimum in MINIMA}
        result[name] = {"median": round(float(np.median(best)), 4), **shares}
        print(f"rejected, {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in result[name].items()))
    return result


def _name(path: Path) -> str:
    """The name of a data set: that of its folder or archive, or of a built-in set."""
    suffix = next((suffix for suffix in ARCHIVES if path.name.endswith(suffix)), "")
    return path.name.removesuffix(suffix).removeprefix("builtin:")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--foreign", nargs="+", type=Path, default=[], metavar="BEIR", help="queries of other fields")
    options = parser.parse_args()
    if common.missing_file(options.folder, *options.foreign):
        return 2
    if not (sets := several_domains(options.folder)):
        return 2
    with common.store_folder(None) as temporary:
        spec = RunSpec.model_validate({"name": "select", "source": {"kind": "sample"}})
        encoder = base_encoder(spec, open_store(str(temporary)))
        embedded = [embed_queries(encoder, name, path) for name, path in sets]
        result: dict[str, Any] = {"accuracy": by_count(embedded)}
        if options.foreign:
            foreign = {_name(path): [q.text for q in retention.read(str(path))[1]] for path in options.foreign}
            result["rejected"] = rejected(
                embedded, {name: encoder.encode(texts, "query") for name, texts in foreign.items()}
            )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
