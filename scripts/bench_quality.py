"""Quality on MedQuAD: compares the base model, Pyrite's defaults and the public recipe on one split and one machine.

Usage: python scripts/bench_quality.py [MEDQUAD] [--retention BEIR_FOLDER] [--only ours|known] [--store FOLDER]

MEDQUAD is the published archive or folder. Default: the archive that `pyrite fetch medquad` downloads to data/. Each
run has its own store, so that no run reuses the embeddings of another. The last line is JSON: test metrics, and the
duration of each run in seconds. Durations are comparable only on an otherwise idle machine. ``base_context`` and
``ours`` read passages in context, as the run does; ``base`` and ``ours_without_context`` read the texts alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pyrite import tables
from pyrite.config import load
from pyrite.embedding.encoder import Encoder
from pyrite.embedding.models import base_folder
from pyrite.progress import NullProgress
from pyrite.stages.scoring import means, score_split
from pyrite.store import open_store

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = ROOT / "data/medquad-577bd37b96c0.tar.gz"


def train(example: str, medquad: Path, store: Path, overrides: list[str]) -> tuple[dict[str, Any], int]:
    """Run ``pyrite train`` on an example. Returns its report and its duration in seconds."""
    run_file = ROOT / f"src/pyrite/examples/{example}.yaml"
    command = ["train", str(run_file), f"source.path={medquad}", "--store", str(store), *overrides]
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "pyrite", *command], check=True)
    seconds = round(time.monotonic() - start)
    report = json.loads((store / "runs" / example / "report/report.json").read_text())
    return report, seconds


def rounded_metrics(report: dict[str, Any], model: str) -> dict[str, float]:
    means = report["means"]["test"][model]
    return {name: round(means[name], 4) for name in ("mrr@5", "dcg@5")}


def metrics_without_context(store: Path, example: str) -> dict[str, dict[str, float]]:
    """Test metrics of the base and the chosen model if passages have no context. Training had it."""
    run = store / "runs" / example
    spec = load(run / "run.yaml")
    passages = tables.read(run / "corpus/passages.parquet", tables.PASSAGES)
    queries = tables.read(run / "queries/queries.parquet", tables.QUERIES)
    qrels = tables.read(run / "queries/qrels.parquet", tables.QRELS)
    passages = tables.without_context(passages)
    base = base_folder(spec.model.base, spec.model.revision)
    metrics = {}
    for name, folder in (("base", base), ("ours_without_context", run / "model")):
        encoder = Encoder(folder, base, spec, open_store(str(store)))
        _, rows = score_split(encoder, name, "test", passages, queries, qrels, NullProgress())
        metrics[name] = {metric: round(means(rows)[metric], 4) for metric in ("mrr@5", "dcg@5")}
    return metrics


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("medquad", type=Path, nargs="?", default=ARCHIVE)
    parser.add_argument("--retention", type=Path)
    parser.add_argument("--only", choices=["ours", "known"])
    parser.add_argument("--store", type=Path, help="store the runs in this folder (default: a temporary folder)")
    arguments = parser.parse_args()
    if not arguments.medquad.exists():
        print(f"{arguments.medquad} does not exist; pass an archive, or run `pyrite fetch medquad`.", file=sys.stderr)
        return 2
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        store = arguments.store or Path(temporary)
        medquad = arguments.medquad.resolve()
        if arguments.only != "known":
            extra = [f"evaluate.retention.path={arguments.retention.resolve()}"] if arguments.retention else []
            report, seconds = train("medquad", medquad, store / "ours", extra)
            result["base_context"] = rounded_metrics(report, "base")
            chosen = report["chosen"]
            result["ours"] = {**rounded_metrics(report, chosen), "seconds": seconds, "chosen": chosen}
            for name in report["models"]:
                if name not in ("base", chosen):
                    result["ours"][name] = rounded_metrics(report, name)
            result |= metrics_without_context(store / "ours", "medquad")
        if arguments.only != "ours":
            report, seconds = train("known-recipe", medquad, store / "known", [])
            result.setdefault("base_context", rounded_metrics(report, "base"))
            # The published recipe uses its last iteration. Pyrite's model selection is not part of it.
            result["known_recipe"] = {**rounded_metrics(report, "iteration-2"), "seconds": seconds}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
