"""Several domains: a model for each with routing, or one model for all.

Usage: python scripts/bench_multitask.py FOLDER --store STORE [--retention BEIR] [--set KEY=VALUE] [--without-union]

FOLDER, STORE and --retention are those of a finished `make bench-domains ARGS='FOLDER --store STORE'`. Every test query
of every domain searches the corpora of all domains together with each of these models:

base        the base model
DOMAIN      a domain's specialist: the model that its run handed over
average     the mean of the specialists' weights (model soup, arXiv 2203.05482)
union       the model that a run on the data of all domains hands over, with the splits of the domains' runs
routed      the specialist of the domain that is selected for the query, as by `pyrite select`
oracle      the specialist of the query's own domain

Columns are the test MRR@5 and DCG@5 of each domain's queries and of all, with the relative change against the base
model and its 95% interval (clustered by topic). The run on all data is in STORE/union. The last line is JSON; accuracy
is the share of queries for which their own domain is selected.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import bench_common as common
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from bench_common import METRICS, Run
from bench_domains import run_name, several_domains

from pyrite import tables
from pyrite.embedding import models
from pyrite.embedding.encoder import Encoder, in_memory
from pyrite.embedding.models import base_folder
from pyrite.evaluation import scoring
from pyrite.progress import NullProgress
from pyrite.registry.centroids import CENTROIDS, fit_centroids, nearest_domain
from pyrite.registry.selection import sample_queries
from pyrite.stages.scoring import Corpus, rank
from pyrite.store import open_store

BASE, AVERAGE, UNION, ROUTED, ORACLE, ALL = "base", "average", "union", "routed", "oracle", "all"
SPLITS = {"train": "train", "val": "dev", "test": "test"}

#: The values of queries by metric and query id.
Values = Mapping[str, Mapping[str, float]]


# --- models -----------------------------------------------------------------------------------------------------------


def average(folders: Sequence[Path], out: Path) -> Path:
    """Write the model whose weights are the mean of those of ``folders`` to a folder below ``out``."""
    mean = folders[0]
    for count, folder in enumerate(folders[1:], start=2):
        # blend(a, b, w) is w * b + (1 - w) * a.
        mean, before = out / f"average-{count}", mean
        models.blend(before, folder, 1 / count, mean)
    return mean


def write_union(runs: Mapping[str, Run], folder: Path) -> Path:
    """Write a BEIR folder with the passages, queries and splits of all ``runs``. Ids start with the domain's name."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    with (folder / "corpus.jsonl").open("w") as corpus, (folder / "queries.jsonl").open("w") as queries:
        for name, run in runs.items():
            for row in _table(run, "corpus/passages", tables.PASSAGES).to_pylist():
                text = {"_id": f"{name}/{row['passage_id']}", "title": row["context"], "text": row["text"]}
                corpus.write(json.dumps(text) + "\n")
            for row in _table(run, "queries/queries", tables.QUERIES).to_pylist():
                topic = {"topic": f"{name}/{row['topic']}"} if row["topic"] else {}
                query = {"_id": f"{name}/{row['query_id']}", "text": row["text"], "metadata": topic}
                queries.write(json.dumps(query) + "\n")
    for split, file in SPLITS.items():
        with (folder / f"qrels/{file}.tsv").open("w") as out:
            out.write("query-id\tcorpus-id\tscore\n")
            for name, run in runs.items():
                for row in _qrels(run, split):
                    out.write(f"{name}/{row['query_id']}\t{name}/{row['passage_id']}\t{row['grade']}\n")
    return folder


def train_union(options: argparse.Namespace, runs: Mapping[str, Run]) -> Path:
    """Train on the data of all ``runs``, and return the folder of the model that is handed over."""
    store: Path = options.store.resolve() / UNION
    # The domains' runs have cut the documents already, so no passage is longer than their limit.
    settings = [f"source.path={write_union(runs, store / 'data')}", "domain=union", *options.set]
    settings += common.retention_options(options.retention)
    return common.train(common.EXAMPLES / "beir.yaml", store, UNION, settings).folder / "model"


def _table(run: Run, key: str, schema: pa.Schema) -> pa.Table:
    return tables.read(run.folder / f"{key}.parquet", schema)


def _queries(run: Run, split: str) -> pa.Table:
    table = _table(run, "queries/queries", tables.QUERIES)
    return table.filter(pc.equal(table["split"], split))


def _qrels(run: Run, split: str) -> Iterator[dict[str, Any]]:
    ids = set(_queries(run, split)["query_id"].to_pylist())
    rows = _table(run, "queries/qrels", tables.QRELS).to_pylist()
    return (row for row in rows if row["query_id"] in ids)


# --- scores -----------------------------------------------------------------------------------------------------------


class MixedQueries(NamedTuple):
    """The test queries and all passages of several runs. Ids have the name of their domain as a prefix."""

    corpus: Corpus
    ids: list[str]
    texts: list[str]
    domains: list[str]
    qrels: pa.Table
    clusters: dict[str, str]


def mix(runs: Mapping[str, Run]) -> MixedQueries:
    """Combine the test queries and passages of all ``runs``."""
    passage_ids, passages, ids, texts, own, qrels = [], [], [], [], [], []
    clusters: dict[str, str] = {}
    for name, run in runs.items():
        found = _table(run, "corpus/passages", tables.PASSAGES)
        passage_ids += [f"{name}/{each}" for each in found["passage_id"].to_pylist()]
        passages += tables.in_context(found)
        queries = _queries(run, "test")
        of_run = queries["query_id"].to_pylist()
        ids += [f"{name}/{each}" for each in of_run]
        texts += queries["text"].to_pylist()
        own += [name] * len(of_run)
        clusters |= {f"{name}/{each}": f"{name}/{run.report['clusters'].get(each, each)}" for each in of_run}
        qrels += [
            {**row, "query_id": f"{name}/{row['query_id']}", "passage_id": f"{name}/{row['passage_id']}"}
            for row in _qrels(run, "test")
        ]
    corpus = Corpus(pa.array(passage_ids, pa.string()), in_memory(passages))
    return MixedQueries(corpus, ids, texts, own, pa.Table.from_pylist(qrels, tables.QRELS), clusters)


def score(encoder: Encoder, test: MixedQueries) -> Values:
    """The metrics of every test query."""
    ranked = rank(encoder, test.corpus, (test.ids, test.texts), NullProgress())
    rows = scoring.per_query(ranked, test.qrels)
    return {metric: {r["query_id"]: r["value"] for r in rows if r["metric"] == metric} for metric in METRICS}


def selected_domains(runs: Mapping[str, Run], encoder: Encoder, test: MixedQueries) -> list[str]:
    """The domain that ``pyrite select`` takes for each test query."""
    centroids = {}
    for name, run in runs.items():
        texts = sample_queries(_queries(run, "train")["text"].to_pylist(), 0)
        centroids[name] = fit_centroids(encoder.encode(texts, "query"), CENTROIDS, 0)
    return list(nearest_domain(encoder.encode(test.texts, "query"), centroids).domains)


def routed(by_model: Mapping[str, Values], test: MixedQueries, selected: Sequence[str]) -> Values:
    """The values of every query with the specialist of its ``selected`` domain."""
    pairs = list(zip(test.ids, selected, strict=True))
    return {metric: {query: by_model[domain][metric][query] for query, domain in pairs} for metric in METRICS}


def compared(base: Values, model: Values, test: MixedQueries) -> dict[str, Any]:
    """A model's mean metrics for the queries of each domain and of all, with the changes against the base model."""
    found: dict[str, Any] = {}
    for domain in [*dict.fromkeys(test.domains), ALL]:
        ids = [query for query, own in zip(test.ids, test.domains, strict=True) if domain in (own, ALL)]
        found[domain] = {}
        for metric in METRICS:
            values, before = ({query: each[metric][query] for query in ids} for each in (model, base))
            change = None if model is base else common.relative_change(before, values, test.clusters)
            found[domain][metric] = {"value": round(float(np.mean(list(values.values()))), 4), "change": change}
    return found


def show(result: Mapping[str, Any], metric: str) -> None:
    """Print a table with a row for each model."""
    columns = next(iter(result.values()))
    print(f"\n{metric:12}" + "".join(f"{domain:>34}" for domain in columns))
    for model, row in result.items():
        cells = ""
        for each in (row[domain][metric] for domain in columns):
            change = each["change"] or {}
            parts = [f"{change[part]:+.1%}" if change.get(part) is not None else "" for part in ("mean", "low", "high")]
            cells += f"{each['value']:>8.4f}" + (f"{parts[0]} ({parts[1]} to {parts[2]})" if change else "").rjust(26)
        print(f"{model:12}{cells}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--store", type=Path, required=True, help="store of finished runs of bench_domains.py")
    parser.add_argument("--retention", type=Path, help="as in bench_domains.py, for union only")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of union")
    parser.add_argument("--without-union", action="store_true", help="leave out union, which needs a training run")
    options = parser.parse_args()
    if common.missing_file(options.folder, options.store, options.retention):
        return 2
    if not (sets := several_domains(options.folder)):
        return 2
    # The first seed's runs.
    runs = {name: Run(options.store.resolve() / name, run_name(name, 0), None) for name, _ in sets}
    if unfinished := [run.folder for run in runs.values() if not (run.folder / "report/report.json").exists()]:
        print(f"{unfinished[0]} is not finished. Finish `make bench-domains` with this store.", file=sys.stderr)
        return 2
    specialists = {name: run.folder / "model" for name, run in runs.items()}
    spec = next(iter(runs.values())).spec
    base, test = base_folder(spec.model.base, spec.model.revision), mix(runs)
    print(f"{len(test.corpus.ids):,} passages, {len(test.ids):,} test queries", flush=True)
    with common.store_folder(None) as temporary:
        store = open_store(str(temporary))
        encoder = partial(Encoder, base=base, spec=spec, store=store)
        folders = {BASE: base, **specialists, AVERAGE: average(list(specialists.values()), temporary)}
        if not options.without_union:
            folders[UNION] = train_union(options, runs)
        values: dict[str, Values] = {}
        for name, folder in folders.items():
            print(f"searching with {name}", flush=True)
            values[name] = score(encoder(folder), test)
        selected = selected_domains(runs, encoder(base), test)
    values[ROUTED], values[ORACLE] = routed(values, test, selected), routed(values, test, test.domains)
    result = {name: compared(values[BASE], each, test) for name, each in values.items()}
    for metric in METRICS:
        show(result, metric)
    right = float(np.mean(np.array(selected) == np.array(test.domains)))
    print(json.dumps({"accuracy": round(right, 4), **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
