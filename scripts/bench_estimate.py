"""The estimate of every step, from numbers alone, against a complete run on synthetic data.

Usage: python scripts/bench_estimate.py [--passages 100000] [--model FOLDER] [KEY=VALUE ...]

The source is that of ``bench_scale.py --stage prepare``: answers of one to seven passages with one question each. By
default, the base model is the packaged one with only its first layer, and texts have at most 16 tokens, so that a run
on 2 cores takes minutes. The estimate gets the numbers of passages and training queries, and measures the model's
speed.

memory: peak of the step's process. written: embeddings and the largest size of the step's scratch folder, which also
has the outputs; it is sampled five times a second. stored: embeddings and outputs. seconds: without the start of the
process. Run it on a machine that is idle otherwise, or ignore the seconds.

It prints what was measured, and the estimate divided by it. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench_scale import write_rows

from pyrite.config import dump, load
from pyrite.estimate import estimate
from pyrite.estimate.workload import workload_of
from pyrite.executors.step import open_run
from pyrite.report.formatting import size
from pyrite.store import open_store

#: By step, what it needs: memory, written and stored in bytes, and seconds.
Figures = Mapping[str, Mapping[str, float]]


def one_layer(folder: Path) -> Path:
    """The packaged model with its first layer only."""
    from sentence_transformers import SentenceTransformer

    from pyrite.embedding.models import BUILTIN, base_folder

    model = SentenceTransformer(str(base_folder(BUILTIN, None)), device="cpu")
    bert: Any = model[0].auto_model
    bert.encoder.layer = bert.encoder.layer[:1]
    bert.config.num_hidden_layers = 1
    model.save_pretrained(str(folder))
    return folder


class ScratchSizes(threading.Thread):
    """The largest size of each step's scratch folder in bytes, by the step's name."""

    def __init__(self, scratch: Path):
        super().__init__(daemon=True)
        self._scratch, self.sizes = scratch, defaultdict[str, int](int)

    def run(self) -> None:
        while True:
            for step in self._scratch.glob("*"):
                self.sizes[step.name] = max(self.sizes[step.name], _bytes(step))
            time.sleep(0.2)


def _bytes(folder: Path) -> int:
    """Bytes of the files in ``folder``; they may disappear meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(parent) / name).stat().st_size
    return total


def measured(run_file: Path, store: Path) -> Figures:
    """What each step of a complete run needed."""
    scratch = ScratchSizes(store / "runs/bench/scratch")
    scratch.start()
    subprocess.run([sys.executable, "-m", "pyrite", "train", str(run_file), "--store", str(store)], check=True)
    blocks = [path.stat() for path in (store / "embeddings").rglob("*.npy")]
    found = {}
    for path in (store / "runs/bench/steps").glob("*.json"):
        manifest, end = json.loads(path.read_text()), path.stat().st_mtime
        written = (block.st_size for block in blocks if end - manifest["seconds"] <= block.st_mtime <= end)
        embeddings, outputs = sum(written), sum(entry["bytes"] for entry in manifest["outputs"])
        found[manifest["step"]] = {
            "memory": manifest["peak_memory_bytes"],
            "written": embeddings + max(scratch.sizes[manifest["step"]], outputs),
            "stored": embeddings + outputs,
            "seconds": manifest["seconds"],
        }
    return found


def estimated(run_file: Path, store: Path) -> Figures:
    """What the estimate says by the run's numbers of passages and training queries."""
    run = open_run(load(run_file), open_store(str(store)))
    prepared = run.manifests()["prepare"]["summary"]
    found = estimate(run, work=workload_of(run.spec, prepared["passages"], prepared["queries"]["train"]))
    return {
        step.name: {
            "memory": needs.memory,
            "written": needs.written,
            "stored": needs.stored,
            "seconds": found.seconds[step],
        }
        for step, needs in found.needs.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--model", type=Path, help="folder of the base model")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, options)
        base = options.model or one_layer(folder / "model")
        source = {"kind": "jsonl", "path": str(folder / "rows.jsonl"), "title": "title", "topic": "topic"}
        settings = {"source": source, "iterations": 1, "model": {"base": str(base), "max_tokens": 16}}
        (folder / "settings.yaml").write_text(json.dumps(settings))
        run_file, store = folder / "bench.yaml", folder / "store"
        run_file.write_text(dump(load(folder / "settings.yaml", [*options.overrides, "name=bench"])))
        found, expected = measured(run_file, store), estimated(run_file, store)
    print(f"\n{'':12}" + "".join(f"{column:>20}" for column in ("memory", "written", "stored", "seconds")))
    ratios = {}
    for step, of_step in expected.items():
        ratios[step] = {name: round(value / max(found[step][name], 1e-9), 2) for name, value in of_step.items()}
        cells = (f"{found[step][name]:,.1f} s" if name == "seconds" else size(found[step][name]) for name in of_step)
        row = (f"{cell:>13} {ratio:>6.2f}" for cell, ratio in zip(cells, ratios[step].values(), strict=True))
        print(f"{step:12}" + "".join(row))
    print(json.dumps({"measured": found, "estimate_by_measured": ratios}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
