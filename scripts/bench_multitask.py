"""One model for several domains: every domain's specialist, the average of their weights, and training on the union.

Usage: python scripts/bench_multitask.py STORE RUN [RUN ...] [--set KEY=VALUE]

STORE holds finished runs with the same base model, one for each domain. A domain's specialist is the model that its
run hands over. "average" is the mean of the specialists' weights (model soup, arXiv 2203.05482). "union" is the model
that a run on the training data of all domains hands over; it has the splits of the domains' runs. All models are scored
on every domain's test queries over that domain's corpus, so a specialist's row shows what it loses elsewhere.

Rows are test MRR@5 and DCG@5 by domain, with the relative change against the base model and its 95% interval (clustered
by topic). ``mean`` is the mean of the relative changes over the domains. The last line is JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import bench_common as common
import pyarrow.compute as pc
from bench_common import CLUSTERS, METRICS, PER_QUERY, Row, Run, TestSet

from pyrite import tables
from pyrite.embedding import models

BASE, AVERAGE, UNION = "base", "average", "union"
SPLITS = {"train": "train", "val": "dev", "test": "test"}


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
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as corpus, (folder / "queries.jsonl").open("w") as queries:
        for name, run in runs.items():
            for row in _rows(run, "corpus/passages", tables.PASSAGES):
                text = {"_id": f"{name}/{row['passage_id']}", "title": row["context"], "text": row["text"]}
                corpus.write(json.dumps(text) + "\n")
            for row in _rows(run, "queries/queries", tables.QUERIES):
                topic = {"topic": f"{name}/{row['topic']}"} if row["topic"] else {}
                query = {"_id": f"{name}/{row['query_id']}", "text": row["text"], "metadata": topic}
                queries.write(json.dumps(query) + "\n")
    for split, file in SPLITS.items():
        with (folder / f"qrels/{file}.tsv").open("w") as out:
            out.write("query-id\tcorpus-id\tscore\n")
            for name, run in runs.items():
                table = tables.read(run.folder / "queries/queries.parquet", tables.QUERIES)
                ids = set(table.filter(pc.equal(table["split"], split))["query_id"].to_pylist())
                for row in _rows(run, "queries/qrels", tables.QRELS):
                    if row["query_id"] in ids:
                        out.write(f"{name}/{row['query_id']}\t{name}/{row['passage_id']}\t{row['grade']}\n")
    return folder


def _rows(run: Run, key: str, schema: Any) -> Iterator[dict[str, Any]]:
    yield from tables.read(run.folder / f"{key}.parquet", schema).to_pylist()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of union")
    options = parser.parse_args()
    store: Path = options.store.resolve()
    runs = {name: Run(store, name, None) for name in options.runs}
    if common.missing_file(*(run.folder / "report/report.json" for run in runs.values())):
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # The domains' runs have cut the documents already, so no passage is longer than their limit.
        settings = [f"source.path={write_union(runs, folder / UNION)}", "domain=union", *options.set]
        union = common.train(common.EXAMPLES / "beir.yaml", store, UNION, settings)
        specialists = {name: run.folder / "model" for name, run in runs.items()}
        candidates: dict[str, Path | None] = {
            BASE: None,
            **specialists,
            AVERAGE: average(list(specialists.values()), folder),
            UNION: union.folder / "model",
        }
        scores = {domain: score_all(run, candidates) for domain, run in runs.items()}
    result = {model: compared(scores, runs, model) for model in candidates}
    show(result, list(runs))
    print(json.dumps(result))
    return 0


def score_all(run: Run, candidates: Mapping[str, Path | None]) -> dict[str, Row]:
    """The test metrics of every model on the domain of ``run``."""
    test_set = TestSet(run, None)
    return {model: test_set.score(folder) for model, folder in candidates.items()}


def compared(scores: Mapping[str, Mapping[str, Row]], runs: Mapping[str, Run], model: str) -> dict[str, Any]:
    """A model's metrics by domain, each with its relative change against the base model, and the mean change."""
    found: dict[str, Any] = {}
    for domain, rows in scores.items():
        clusters = runs[domain].row(BASE)[CLUSTERS]
        found[domain] = {
            metric: {
                "value": rows[model][metric],
                "change": common.relative_change(
                    rows[BASE][PER_QUERY][metric], rows[model][PER_QUERY][metric], clusters
                ),
            }
            for metric in METRICS
        }
    changes = {metric: [found[domain][metric]["change"]["mean"] for domain in scores] for metric in METRICS}
    return {**found, "mean": {metric: round(sum(each) / len(each), 4) for metric, each in changes.items()}}


def show(result: Mapping[str, Any], domains: Sequence[str]) -> None:
    """Print a table with a row for each model."""
    print(f"\n{'':16}" + "".join(f"{domain:>28}" for domain in domains) + f"{'mean':>10}")
    for model, row in result.items():
        cells = ""
        for domain in domains:
            each = row[domain]["mrr@5"]
            change = each["change"]
            interval = "" if model == BASE else f" ({change['low']:+.1%} to {change['high']:+.1%})"
            cells += f"{each['value']:>8.4f}{interval:>20}"
        print(f"{model:16}{cells}{row['mean']['mrr@5']:>+10.1%}")


if __name__ == "__main__":
    sys.exit(main())
