"""Ablations: Pyrite's defaults on MedQuAD with one setting away from its default, and the gain or loss against them.

Usage: python scripts/bench_ablations.py [DATA] [--retention BEIR] [--only NAME ...] [--splits 2 --seeds 2]

DATA as in bench_quality.py. Each ablation is a complete run with the overrides in ABLATIONS. All runs of a split share
a store, and thereby the embeddings that are equal, such as the base model's. Every model reads passages in context on
test, except no-context; context-in-evaluation-only is the model of no-context that reads them in context on test.

graded needs 4 negatives, which are spread over the ranks: with one, its KL divergence would compare two grades only.
Compare it with four-negatives (the default loss, the 4 highest-ranked ones) for the effect of the loss and the spread.

l2-sp is 100: a step moves the weights back by this times the learning rate (1e-4 at its peak), as a share of their
distance to the base model's. In two iterations of 43 steps, 1 would undo 0.4% of the first step, and 100 a third of it.

title-pairs is ours_titles of bench_quality.py: it also trains on passages of test topics, but on no held-out question.

The change is relative to the default. With one split and one seed, its 95% interval resamples the test topics; with
several, it is that of summarize in bench_common.py over runs with equal split and seed. Finished results are appended
to --results (default: out/bench-ablations.jsonl), and a restart skips them. The last line is JSON.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import bench_common as common
from bench_common import CLUSTERS, METRICS, PER_QUERY, Results, Row, TestSet
from bench_quality import ARCHIVE, TITLE_PAIRS

from pyrite.errors import UserError

DEFAULT = "default"
CONTEXT_IN_EVALUATION = "context-in-evaluation-only"

#: The overrides of each ablation.
ABLATIONS: dict[str, list[str]] = {
    DEFAULT: [],
    "no-context": ["prepare.context=none"],
    CONTEXT_IN_EVALUATION: ["prepare.context=none"],
    "known-answers-not-first": ["mine.known_first=false"],
    "no-violating-negative": ["mine.violating_grade=null"],
    "anchor": ["finetune.anchor=1"],
    "soup": ["finetune.soup_size=3"],
    "four-negatives": ["mine.num_negatives=4"],
    "graded": ["mine.num_negatives=4", "finetune.loss=graded"],
    "no-rehearsal": ["finetune.rehearsal=0"],
    "l2-sp": ["finetune.l2_sp=100"],
    "title-pairs": [TITLE_PAIRS],
    "query-side": ["finetune.train=query"],
    "fixed-blends": ["evaluate.blends=[0.3,0.6,0.8]"],
    "no-blends": ["evaluate.blends=[]"],
    "one-iteration": ["iterations=1"],
}


class Ablations:
    """The runs of one split, in one store."""

    def __init__(self, options: Namespace, results: Results, split: int, store: Path):
        self._options, self._results, self._split, self._store = options, results, split, store
        self._data_key = common.data_key(options)

    def row(self, name: str, seed: int) -> Row:
        key = {"ablation": name, "overrides": ABLATIONS[name], "split": self._split, "seed": seed}
        return self._results.once({**key, **self._data_key}, lambda: self._measure(name, seed))

    def _measure(self, name: str, seed: int) -> Row:
        options = self._options
        run_file, data = common.data_options(options.data)
        settings = [*data, *options.set, f"prepare.seed={self._split}", f"seed={seed}"]
        # The model of no-context is also that of context-in-evaluation-only: the second run finds it finished.
        run_name = "no-context" if name == CONTEXT_IN_EVALUATION else name
        overrides = [*settings, *ABLATIONS[name], *common.retention_options(options.retention)]
        run = common.train(run_file, self._store, f"{run_name}-{seed}", overrides)
        if name != CONTEXT_IN_EVALUATION:
            return run.handed_over(TestSet(run, options.retention))
        in_context = common.prepare(run_file, self._store, settings)
        row = TestSet(in_context, options.retention).score(run.folder / "model")
        return {**row, "chosen": run.report["chosen"]}


def change(by_run: dict[tuple[int, int], dict[str, Row]], name: str, metric: str, test_share: float) -> dict[str, Any]:
    """Mean, low and high of the relative change of ``metric`` from the default to ablation ``name``."""
    if len(by_run) > 1:
        gains = {run: common.relative_gain(rows[DEFAULT], rows[name], metric) for run, rows in by_run.items()}
        return common.summarize(gains, test_share)
    (rows,) = by_run.values()
    base, other = rows[DEFAULT][PER_QUERY][metric], rows[name][PER_QUERY][metric]
    return common.relative_change(base, other, rows[DEFAULT][CLUSTERS])


def unknown_overrides(options: Namespace) -> str:
    """Why the overrides of a chosen ablation are not valid; empty if they are."""
    run_file, data = common.data_options(options.data)
    for name in options.only:
        try:
            common.load(run_file, [*data, *options.set, *ABLATIONS[name]])
        except UserError as error:
            return f"ablation {name}: {error}"
    return ""


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=ARCHIVE)
    parser.add_argument("--only", nargs="+", choices=list(ABLATIONS), default=list(ABLATIONS), metavar="NAME")
    options = parser.parse_args()
    options.only = list(dict.fromkeys([DEFAULT, *options.only]))
    if common.missing_file(options.data, options.retention):
        return 2
    if problem := unknown_overrides(options):
        print(problem, file=sys.stderr)
        return 2
    path = options.results or common.ROOT / "out/bench-ablations.jsonl"
    results = Results(path, Path(__file__).name, any_version=options.any_version)
    by_run: dict[tuple[int, int], dict[str, Row]] = {}
    for split in range(options.splits):
        with common.store_folder(options.store / f"split-{split}" if options.store else None) as store:
            ablations = Ablations(options, results, split, store)
            for seed in range(options.seeds):
                by_run[split, seed] = {name: ablations.row(name, seed) for name in options.only}
                common.print_table(f"split {split}, seed {seed}", by_run[split, seed], DEFAULT)
    shares = common.load(*common.data_options(options.data)).prepare.split
    result: dict[str, Any] = {}
    for name in options.only:
        result[name] = common.mean_row([rows[name] for rows in by_run.values()])
        if name != DEFAULT:
            result[name]["change"] = {m: change(by_run, name, m, shares.test / shares.train) for m in METRICS}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
