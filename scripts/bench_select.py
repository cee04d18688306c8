"""Selection of a domain: how often the nearest centroid is the query's own domain, and what routing gains.

Usage: python scripts/bench_select.py FOLDER [--foreign BEIR ...] [--store STORE] [--model NAME=FOLDER ...]

FOLDER holds BEIR folders or archives with splits, as for bench_domains.py. Centroids are computed from the training
queries of each, and the test queries of all are mixed. "accuracy" is the share of them for which the nearest domain is
their own, by the number of centroids: mean, worst and best of several seeds of k-means. "val" is the mean on the
validation queries.

--foreign: data sets of other fields. "rejected" is the share of queries whose score for their nearest domain is below a
minimum: of the mixed test queries, and of each foreign set.

--store: the store of a finished `make bench-domains ARGS='FOLDER --store STORE'`. Each test query searches the union of
all corpora with the base model, each domain's model, the selected domain's model (routed), and that of its own domain
(oracle). --model adds a row for a model folder, such as one trained on all domains. The last line is JSON.
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
import pyarrow as pa
import pyarrow.compute as pc
from bench_common import CLUSTERS, METRICS, PER_QUERY, Row, Run
from bench_domains import ARCHIVES, domains

from pyrite import tables
from pyrite.embedding.encoder import Encoder, in_memory
from pyrite.embedding.models import base_folder
from pyrite.evaluation import scoring
from pyrite.progress import NullProgress
from pyrite.registry.centroids import CENTROIDS, Floats, fit_centroids, nearest_domain
from pyrite.registry.selection import base_encoder, sample_queries
from pyrite.sources import retention
from pyrite.sources.base import Question
from pyrite.sources.beir import Beir
from pyrite.spec import BeirSource, RunSpec
from pyrite.stages.scoring import Corpus, rank
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


class Union(NamedTuple):
    """The test queries and all passages of several runs. Ids have the name of their domain as a prefix."""

    corpus: Corpus
    ids: list[str]
    texts: list[str]
    domains: list[str]
    qrels: pa.Table
    clusters: dict[str, str]


def union_of(runs: Mapping[str, Run]) -> Union:
    passage_ids, passages, ids, texts, own, qrels = [], [], [], [], [], []
    clusters: dict[str, str] = {}
    for name, run in runs.items():
        found = tables.read(run.folder / "corpus/passages.parquet", tables.PASSAGES)
        passage_ids += [f"{name}/{each}" for each in found["passage_id"].to_pylist()]
        passages += tables.in_context(found)
        queries = tables.read(run.folder / "queries/queries.parquet", tables.QUERIES)
        queries = queries.filter(pc.equal(queries["split"], "test"))
        of_run = queries["query_id"].to_pylist()
        ids += [f"{name}/{each}" for each in of_run]
        texts += queries["text"].to_pylist()
        own += [name] * len(of_run)
        clusters |= {f"{name}/{each}": f"{name}/{run.report['clusters'].get(each, each)}" for each in of_run}
        rows = tables.read(run.folder / "queries/qrels.parquet", tables.QRELS).to_pylist()
        wanted = set(of_run)
        qrels += [
            {**row, "query_id": f"{name}/{row['query_id']}", "passage_id": f"{name}/{row['passage_id']}"}
            for row in rows
            if row["query_id"] in wanted
        ]
    corpus = Corpus(pa.array(passage_ids, pa.string()), in_memory(passages))
    return Union(corpus, ids, texts, own, pa.Table.from_pylist(qrels, tables.QRELS), clusters)


def score(encoder: Encoder, union: Union) -> dict[str, dict[str, float]]:
    """The metrics of every test query on the union of the corpora, by metric and query id."""
    ranked = rank(encoder, union.corpus, (union.ids, union.texts), NullProgress())
    rows = scoring.per_query(ranked, union.qrels)
    return {metric: {r["query_id"]: r["value"] for r in rows if r["metric"] == metric} for metric in METRICS}


def routed(by_model: Mapping[str, Any], union: Union, selected: Sequence[str]) -> dict[str, dict[str, float]]:
    """The metrics of every query with the model of its ``selected`` domain."""
    pairs = list(zip(union.ids, selected, strict=True))
    return {metric: {query: by_model[domain][metric][query] for query, domain in pairs} for metric in METRICS}


def routing(options: argparse.Namespace, runs: Mapping[str, Run], encoder: Encoder, own: Sequence[Embedded]) -> Row:
    union, store = union_of(runs), open_store(str(options.store))
    print(f"union: {len(union.corpus.ids):,} passages, {len(union.ids):,} test queries", flush=True)
    centroids = {each.name: fit_centroids(each.splits["train"], CENTROIDS, 0) for each in own}
    selected = nearest_domain(encoder.encode(union.texts, "query"), centroids).domains
    spec = next(iter(runs.values())).spec
    base = base_folder(spec.model.base, spec.model.revision)
    others = dict(each.split("=", 1) for each in options.model)
    folders = {"base": base, **{name: run.folder / "model" for name, run in runs.items()}}
    values = {}
    for name, folder in {**folders, **{name: Path(folder) for name, folder in others.items()}}.items():
        print(f"searching with {name}", flush=True)
        values[name] = score(Encoder(folder, base, spec, store), union)
    values["routed"] = routed(values, union, selected)
    values["oracle"] = routed(values, union, union.domains)
    rows: dict[str, Row] = {}
    for name, found in values.items():
        means = {metric: round(float(np.mean(list(found[metric].values()))), 4) for metric in METRICS}
        rows[name] = {**means, PER_QUERY: found, CLUSTERS: union.clusters}
        changes = {
            f"{metric} change": common.relative_change(values["base"][metric], found[metric], union.clusters)
            for metric in METRICS
        }
        rows[name] |= changes if name != "base" else {}
    common.print_table("union of all corpora", rows, "base")
    right = np.mean(np.array(selected) == np.array(union.domains))
    return {
        "accuracy": round(float(right), 4),
        **{
            name: {key: value for key, value in row.items() if key not in (PER_QUERY, CLUSTERS)}
            for name, row in rows.items()
        },
    }


def _name(path: Path) -> str:
    """The name of a data set: that of its folder or archive, or of a built-in set."""
    suffix = next((suffix for suffix in ARCHIVES if path.name.endswith(suffix)), "")
    return path.name.removesuffix(suffix).removeprefix("builtin:")


def finished_runs(store: Path, names: Sequence[str]) -> dict[str, Run]:
    """The first seed's run of each domain in a store of bench_domains.py."""
    return {name: Run(store / name, f"{name}-0".lower().replace("_", "-"), None) for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--foreign", nargs="+", type=Path, default=[], metavar="BEIR", help="queries of other fields")
    parser.add_argument("--store", type=Path, help="store of finished runs of bench_domains.py")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help="another model to score")
    options = parser.parse_args()
    if common.missing_file(options.folder, options.store, *options.foreign):
        return 2
    if bad := [each for each in options.model if not options.store or not Path(each.partition("=")[2]).is_dir()]:
        print(f"--model {bad[0]}: give NAME=FOLDER with a model folder, and --store.", file=sys.stderr)
        return 2
    sets = list(domains(options.folder))
    if len(sets) < 2:
        print(f"{options.folder}: fewer than two BEIR folders or archives. Correct the path.", file=sys.stderr)
        return 2
    runs = finished_runs(options.store.resolve(), [name for name, _ in sets]) if options.store else {}
    for run in runs.values():
        if not (run.folder / "report/report.json").exists():
            print(f"{run.folder} is not finished. Finish `make bench-domains` with this store.", file=sys.stderr)
            return 2
    with common.store_folder(None) as temporary:
        spec = next((run.spec for run in runs.values()), None) or RunSpec.model_validate(
            {"name": "select", "source": {"kind": "sample"}}
        )
        encoder = base_encoder(spec, open_store(str(temporary)))
        embedded = [embed_queries(encoder, name, path) for name, path in sets]
        result: dict[str, Any] = {"accuracy": by_count(embedded)}
        if options.foreign:
            foreign = {_name(path): [q.text for q in retention.read(str(path))[1]] for path in options.foreign}
            result["rejected"] = rejected(
                embedded, {name: encoder.encode(texts, "query") for name, texts in foreign.items()}
            )
        if runs:
            result["routing"] = routing(options, runs, encoder, embedded)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
