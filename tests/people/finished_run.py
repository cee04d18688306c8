"""A finished run in a store, without training: the tables of report_factory with their manifests."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from pyrite import tables
from pyrite.config import dump
from pyrite.report.data import ReportInputs, build
from pyrite.store import Store, checksum_file


def write_run(store: Store, inputs: ReportInputs) -> str:
    """Write the run and return its name."""
    name = inputs.spec.name
    contents = {
        "prepare": {
            "corpus/passages.parquet": (inputs.passages, tables.PASSAGES),
            "queries/queries.parquet": (inputs.queries, tables.QUERIES),
            "queries/qrels.parquet": (inputs.qrels, tables.QRELS),
        },
        "evaluate": {"report/rankings.parquet": (inputs.rankings, tables.RANKINGS)},
    }
    with TemporaryDirectory() as folder:
        for step, outputs in contents.items():
            entries = []
            for key, (table, schema) in outputs.items():
                path = Path(folder) / key
                tables.write(path, table, schema)
                size, sha256 = checksum_file(path)
                entries.append({"key": key, "bytes": size, "sha256": sha256})
                store.write(f"runs/{name}/{key}", path.read_bytes())
            manifest = {"step": step, "key": "", "outputs": entries, "summary": {}, "inputs": {}, "external": {}}
            store.write(f"runs/{name}/steps/{step}.json", json.dumps({**manifest, "settings": {}}).encode())
    store.write(f"runs/{name}/run.yaml", dump(inputs.spec).encode())
    store.write(f"runs/{name}/report/report.json", json.dumps(build(inputs)).encode())
    return name
