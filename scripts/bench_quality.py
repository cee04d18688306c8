"""Compare the base model, Pyrite's defaults and the known public recipe on MedQuAD, with one split on one machine.

Usage: python scripts/bench_quality.py [MEDQUAD] [--retention BEIR_FOLDER] [--only ours|known] [--store FOLDER]

MEDQUAD is the published archive or folder (default: the file that `pyrite fetch medquad` downloads). Each run has its
own store, so that no run reuses another run's embeddings. The last line is JSON: test metrics, and the duration of each
run in seconds, which is comparable only on an idle machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MEDQUAD = ROOT / "data/medquad-577bd37b96c0.tar.gz"


def train(example: str, medquad: Path, store: Path, overrides: list[str]) -> tuple[dict[str, Any], int]:
    """Run ``pyrite train`` on an example; its report, and how many seconds it took."""
    run_file = ROOT / f"src/pyrite/examples/{example}.yaml"
    words = ["train", str(run_file), f"source.path={medquad}", "--store", str(store), *overrides]
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "pyrite", *words], check=True)
    seconds = round(time.monotonic() - start)
    report = json.loads((store / "runs" / example / "report/report.json").read_text())
    return report, seconds


def figures(report: dict[str, Any], model: str) -> dict[str, float]:
    means = report["means"]["test"][model]
    return {name: round(means[name], 4) for name in ("mrr@5", "dcg@5")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("medquad", type=Path, nargs="?", default=MEDQUAD)
    parser.add_argument("--retention", type=Path)
    parser.add_argument("--only", choices=["ours", "known"])
    parser.add_argument("--store", type=Path, help="keep the runs here; default: a temporary folder")
    arguments = parser.parse_args()
    if not arguments.medquad.exists():
        print(f"{arguments.medquad} does not exist; pass an archive, or run `pyrite fetch medquad`", file=sys.stderr)
        return 2
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        store = arguments.store or Path(temporary)
        medquad = arguments.medquad.resolve()
        if arguments.only != "known":
            extra = [f"evaluate.retention.path={arguments.retention.resolve()}"] if arguments.retention else []
            report, seconds = train("medquad", medquad, store / "ours", extra)
            result["base"] = figures(report, "base")
            chosen = report["chosen"]
            result["ours"] = {**figures(report, chosen), "seconds": seconds, "chosen": chosen}
            for name in report["models"]:
                if name not in ("base", chosen):
                    result["ours"][name] = figures(report, name)
        if arguments.only != "ours":
            report, seconds = train("known-recipe", medquad, store / "known", [])
            result.setdefault("base", figures(report, "base"))
            # As published it hands over its last iteration; Pyrite's choice on validation is not part of it.
            result["known_recipe"] = {**figures(report, "iteration-2"), "seconds": seconds}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
