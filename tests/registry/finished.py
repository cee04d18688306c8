"""A finished run in a store without training: real manifests, and copies of a small model and of synthetic tables."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyrite import tables
from pyrite.config import dump
from pyrite.embedding.models import base_digest
from pyrite.plan import STAGES, chain, input_digests, settings, step_key
from pyrite.report.data import build
from pyrite.store import Store, checksum_file
from report.report_factory import make


def write_finished_run(
    store: Store, name: str, model: Path, gain: float = 1.2, change: str = "", topic: str = ""
) -> str:
    """Write a run that `pyrite status` shows as finished, and return its name.

    Args:
        model: the folder of the base model; the chosen model has its files.
        change: text in a file of the chosen model, so that models differ.
        topic: the text of all training queries; by default they are those of the factory.
    """
    made = make(
        gain=gain,
        name=name,
        source={"kind": "medquad", "path": "/data/medquad.tar.xz"},
        model={"base": str(model)},
        evaluate={"gate": {"mrr@5": 0.05, "dcg@5": 0.05}, "retention": {"path": "/data/cisi", "max_loss": 0.02}},
    )
    rows = [{**row, "text": topic} if topic and row["split"] == "train" else row for row in made.queries.to_pylist()]
    inputs = replace(made, queries=tables.pa.Table.from_pylist(rows, tables.QUERIES))
    spec, prefix, report = inputs.spec, f"runs/{name}", build(inputs)
    written: dict[str, list[str]] = {
        "prepare": ["corpus/passages.parquet", "queries/queries.parquet", "queries/qrels.parquet"]
    }
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tables.write(folder / "corpus/passages.parquet", inputs.passages, tables.PASSAGES)
        tables.write(folder / "queries/queries.parquet", inputs.queries, tables.QUERIES)
        tables.write(folder / "queries/qrels.parquet", inputs.qrels, tables.QRELS)
        contents = {
            f"model/{path.relative_to(model)}": path.read_bytes() for path in model.rglob("*") if path.is_file()
        }
        contents |= {"report/report.json": json.dumps(report).encode(), "model/note.json": json.dumps(change).encode()}
        contents |= {key: (folder / key).read_bytes() for key in written["prepare"]}
        written["evaluate"] = [key for key in contents if key.startswith(("model/", "report/"))]
        for key, data in contents.items():
            store.write(f"{prefix}/{key}", data)
        entries = {key: _entry(folder, key, data) for key, data in contents.items()}
    digest, manifests = base_digest(spec.model), dict[str, dict[str, Any]]()
    for step in chain(spec):
        external = {each: digest if each == "model" else "" for each in STAGES[step.stage].external}
        inputs_of_step = input_digests(spec, step, manifests)
        manifests[step.name] = {
            "step": step.name,
            "key": step_key(spec, step, inputs_of_step, external),
            "outputs": [entries[key] for key in written.get(step.stage, [])],
            "summary": {"judge": "labels-1"} if step.stage == "judge" else {"chosen": report["chosen"]},
            "inputs": inputs_of_step,
            "external": external,
            "settings": settings(spec, step),
            "versions": {"pyrite": "0.1.0"},
            "finished": "2026-11-22T20:00:00+00:00",
            "seconds": 1.0,
        }
        store.write(f"{prefix}/steps/{step.name}.json", json.dumps(manifests[step.name]).encode())
    store.write(f"{prefix}/run.yaml", dump(spec).encode())
    return name


def _entry(folder: Path, key: str, data: bytes) -> dict[str, Any]:
    path = folder / "entry"
    path.write_bytes(data)
    size, sha256 = checksum_file(path)
    return {"key": key, "bytes": size, "sha256": sha256}
