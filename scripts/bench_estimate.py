"""Memory, disk and time of every stage of a complete run on synthetic data, against the estimate from numbers alone.

Usage: python scripts/bench_estimate.py --passages 100000 [--model FOLDER] [KEY=VALUE ...]

The source is that of ``bench_scale.py --stage prepare``: answers of one to seven passages with one question each. The
base model is by default the packaged one with a single layer and texts of at most 16 tokens, so that a run on 2 cores
takes minutes; the estimate measures that model's speed. Memory is the peak of each step's process, from its manifest.
Disk is the largest size of the step's scratch folder, which has its outputs until they are published; with the
embeddings that ``embed`` and ``evaluate`` write. It is sampled five times a second, so the peak may be missed by that.

Printed are the measured value and the estimate divided by it. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench_scale import rows

ITERATIONS = 1


def one_layer(folder: Path) -> Path:
    """The packaged model with its first layer only, which reads at most 16 tokens."""
    from sentence_transformers import SentenceTransformer

    from pyrite.embedding.models import BUILTIN, base_folder

    model = SentenceTransformer(str(base_folder(BUILTIN, None)), device="cpu")
    bert: Any = model[0].auto_model
    bert.encoder.layer = bert.encoder.layer[:1]
    bert.config.num_hidden_layers = 1
    model.max_seq_length = 16
    model.save_pretrained(str(folder))
    return folder


class ScratchSizes(threading.Thread):
    """The largest size of every step's scratch folder, in bytes, by the folder's name."""

    def __init__(self, scratch: Path):
        super().__init__(daemon=True)
        self._scratch, self.sizes = scratch, defaultdict[str, int](int)

    def run(self) -> None:
        while True:
            for step in self._scratch.glob("*"):
                self.sizes[step.name] = max(self.sizes[step.name], _size(step))
            time.sleep(0.2)


def _size(folder: Path) -> int:
    """Bytes of the files in ``folder``; files may disappear meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def measure(run_file: Path, store: Path) -> dict[str, dict[str, float]]:
    """The memory, disk and seconds of each step of a complete run, by the step's name."""
    scratch = ScratchSizes(store / "runs/bench/scratch")
    scratch.start()
    subprocess.run([sys.executable, "-m", "pyrite", "train", str(run_file), "--store", str(store)], check=True)
    found = {}
    for path in (store / "runs/bench/steps").glob("*.json"):
        manifest = json.loads(path.read_text())
        outputs = sum(entry["bytes"] for entry in manifest["outputs"])
        disk = max(scratch.sizes[manifest["step"]], outputs)
        found[manifest["step"]] = {
            "memory": manifest["peak_memory_bytes"],
            "disk": disk,
            "outputs": outputs,
            "seconds": manifest["seconds"],
        }
    found["store"] = {"embeddings": _size(store / "embeddings"), "all": _size(store)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--model", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "rows.jsonl").open("w") as file:
            for row in rows(options.passages):
                file.write(json.dumps(row) + "\n")
        model = options.model or one_layer(folder / "model")
        run_file = folder / "bench.yaml"
        source = {"kind": "jsonl", "path": str(folder / "rows.jsonl"), "title": "title", "topic": "topic"}
        run_file.write_text(json.dumps({"source": source, "iterations": ITERATIONS, "model": {"base": str(model)}}))
        measured = measure(run_file, folder / "store")
    print(json.dumps(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
