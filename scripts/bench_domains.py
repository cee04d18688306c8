"""Quality in several domains: Pyrite's defaults on every BEIR data set of a folder.

Usage: python scripts/bench_domains.py FOLDER [--retention BEIR] [--seeds 2] [--only NAME ...]

FOLDER holds BEIR folders or archives (.tar.xz, .tar.gz, .zip), each with its own splits. All models see all passages in
context, except base. ours is the model that the run hands over, gain its relative gain over base_context with the 95%
interval of the run's report, retention_change the change of nDCG@10 on --retention, with its one-sided 80% bound. With
several seeds, rows are those of the first seed, and gains has mean, worst, best and losses over the seeds. Finished
results are appended to --results (default: out/bench-domains.jsonl), and a restart skips them. The last line is JSON.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_common as common
from bench_common import METRICS, Results, Row, TestSet

ARCHIVES = (".tar.xz", ".tar.gz", ".zip")


def domains(folder: Path) -> Iterator[tuple[str, Path]]:
    """The name and path of every data set in ``folder``."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "corpus.jsonl").exists():
            yield path.name, path
        elif suffix := next((suffix for suffix in ARCHIVES if path.name.endswith(suffix)), None):
            yield path.name.removesuffix(suffix), path


def several_domains(folder: Path) -> list[tuple[str, Path]]:
    """The data sets in ``folder`` if there are two or more; otherwise reports it and returns none."""
    found = list(domains(folder))
    if len(found) < 2:
        print(f"{folder}: fewer than two BEIR folders or archives. Correct the path.", file=sys.stderr)
        return []
    return found


def run_name(domain: str, seed: int) -> str:
    """The name of a domain's run."""
    return f"{domain}-{seed}".lower().replace("_", "-")


def measure(options: Namespace, store: Path, name: str, path: Path, seed: int) -> dict[str, Row]:
    """Train on one data set; with the first seed, also measure the base model and BM25."""
    settings = [f"source.path={path.resolve()}", f"domain={name}", *options.set, f"seed={seed}"]
    settings += common.retention_options(options.retention)
    run = common.train(common.EXAMPLES / "beir.yaml", store, run_name(name, seed), settings)
    test_set = TestSet(run, options.retention)
    ours = run.handed_over(test_set)
    # None if the base model is chosen: then nothing is compared.
    compared = run.report["comparisons"].get(ours["chosen"], {})
    ours["gain"] = {
        metric: {"gain": compared[metric]["relative"], **compared[metric]["relative_interval"]}
        for metric in METRICS
        if metric in compared
    }
    rows = {"ours": ours}
    if seed == 0:
        rows |= {
            "base": test_set.score(context=False),
            "base_context": test_set.score(),
            "bm25_context": test_set.bm25(),
        }
    return rows


def result_of(by_seed: list[dict[str, Row]]) -> dict[str, Any]:
    """The rows of a domain without the values of every query, and the gains over all seeds."""
    result: dict[str, Any] = {name: common.mean_row([row]) for name, row in by_seed[0].items()}
    if len(by_seed) > 1:
        base = by_seed[0]["base_context"]
        result["gains"] = {
            metric: common.summarize(
                {(0, seed): common.relative_gain(base, rows["ours"], metric) for seed, rows in enumerate(by_seed)}, 0
            )
            for metric in METRICS
        }
    return result


def main() -> int:
    parser = common.parser(__doc__, splits=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="data sets to measure (default: all)")
    options = parser.parse_args()
    if common.missing_file(options.folder, options.retention):
        return 2
    chosen = [(name, path) for name, path in domains(options.folder) if not options.only or name in options.only]
    if not chosen:
        print(f"{options.folder}: no BEIR folder or archive to measure. Correct the path or --only.", file=sys.stderr)
        return 2
    file = options.results or common.ROOT / "out/bench-domains.jsonl"
    results = Results(file, Path(__file__).name, any_version=options.any_version)
    retention = common.content_id(options.retention) if options.retention else None
    by_domain: dict[str, list[dict[str, Row]]] = {}
    for name, path in chosen:
        shared = {"domain": name, "data": common.content_id(path), "retention": retention, "set": options.set}
        with common.store_folder(options.store / name if options.store else None) as store:
            for seed in range(options.seeds):
                rows = results.once({**shared, "seed": seed}, lambda: measure(options, store, name, path, seed))  # noqa: B023
                by_domain.setdefault(name, []).append(rows)
    for name, by_seed in by_domain.items():
        rows = by_seed[0]
        order = ("base", "base_context", "bm25_context", "ours")
        common.print_table(name, {row: rows[row] for row in order}, "base_context")
        for metric, gain in rows["ours"]["gain"].items():
            if gain["low"] is not None:
                print(f"  {metric}: {gain['gain']:+.1%}, 95% interval {gain['low']:+.1%} to {gain['high']:+.1%}")
    print(json.dumps({name: result_of(by_seed) for name, by_seed in by_domain.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
