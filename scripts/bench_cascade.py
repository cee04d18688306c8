"""Training with fewer LLM calls: the change of the final test metrics against judging all 50 ranks.

Usage: python scripts/bench_cascade.py [DATA] [--retention BEIR] [--answers hidden] [--only stop cascade]
       [--kappa 0.7] [--first-kappa 0.5] [--similarity 0] [--splits 3 --seeds 2]

DATA as in bench_quality.py. Each condition is a complete run with the labels as judges with simulated errors
(judge.noise): "all" judges every candidate with the LLM's stand-in, "stop" has judge.stop example, and "cascade" also
has a first judge of --first-kappa. Runs of one split and seed have the same errors, and are compared in pairs. With
hidden answers (without_answers.py), a query's positive is what the judges grade as relevant: only there can a cascade
lose useful examples. With known answers, positives come from the answer key. scripts/bench_choosing.py measures the
examples of such settings in minutes, without training.

calls: LLM calls per training query of a run, that is, different pairs that the second or only judge graded.
fewer_calls: those of "all" divided by those of the setting. examples: of an iteration. change: relative change of the
test metrics of the model that the run hands over, against "all" with the same split and seed, with a 95% interval over
splits (bench_common.summarize). With one split it is over the seeds, and so it does not contain the choice of the test
queries.

The two conditions of a pair take about 22 minutes on 2 cores with MedQuAD and two iterations. The smallest useful form
takes an estimated 6 to 8 minutes a pair, and with three seeds gives a wide interval:

    python scripts/bench_cascade.py DATA --only cascade --splits 1 --seeds 3 --set iterations=1 --set evaluate.blends=[]

Finished results are appended to --results (default: out/bench-cascade.jsonl), and a restart skips them. With --store,
it also resumes the interrupted run. The last line is JSON.
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import bench_common as common
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from bench_common import METRICS, Results, Row, Run, TestSet
from bench_noise import HIDDEN, KNOWN, WITHOUT_ANSWERS, ByRun
from bench_quality import ARCHIVE

from pyrite import tables
from pyrite.errors import UserError

ALL, STOP, CASCADE = "all", "stop", "cascade"


def judge_of(condition: str, options: Namespace, split: int, seed: int) -> dict[str, Any]:
    """The section ``judge`` of a condition. The judges of a cascade, and those of each split, have different errors."""
    number = 2 * (1000 * split + seed)

    def labels(kappa: float, noise_seed: int) -> dict[str, Any]:
        noise = {"kappa": kappa, "similarity": options.similarity, "seed": noise_seed}
        return {"kind": "labels", "noise": noise}

    llm = labels(options.kappa, number)
    if condition == CASCADE:
        return {"kind": "cascade", "first": labels(options.first_kappa, number + 1), "second": llm}
    return {**llm, "stop": "example" if condition == STOP else None}


def key_of(condition: str, options: Namespace, split: int, seed: int) -> dict[str, Any]:
    """The key of a result: what its run depends on."""
    judge = judge_of(condition, options, split, seed)
    return {"condition": condition, "answers": options.answers, "judge": judge, "split": split, "seed": seed}


def measure(condition: str, options: Namespace, split: int, seed: int, store: Path) -> Row:
    run_file, data = common.data_options(options.data)
    seeds = [f"prepare.seed={split}", f"seed={seed}"]
    judge = f"judge={json.dumps(judge_of(condition, options, split, seed))}"
    overrides = [*data, judge, *options.set, *seeds, *common.retention_options(options.retention)]
    program = [str(common.SCRIPTS / WITHOUT_ANSWERS)] if options.answers == HIDDEN else ["-m", "pyrite"]
    run = common.train(run_file, store, f"{options.answers}-{condition}-{seed}", overrides, program)
    run = replace(run, seconds=None)  # runs share the store
    base = run.row("base")
    return {
        **run.handed_over(TestSet(run, options.retention)),
        "base": {metric: base[metric] for metric in METRICS},
        **judging(run),
    }


def judging(run: Run) -> Row:
    """LLM calls per training query, and the number of examples of an iteration."""
    called, examples = [], []
    for iteration in range(1, run.spec.iterations + 1):
        for shard in range(run.spec.judge.shards):
            judge = summary_of(run, f"judge-{iteration}.{shard}")["judge"]
            path = run.folder / f"iterations/{iteration}/judgments/shard-{shard:05d}.parquet"
            judgments = tables.read(path, tables.JUDGMENTS)
            of_llm = judgments.filter(pc.equal(judgments["judge"], judge))
            called.append(of_llm.select(["query_id", "passage_id"]))
        examples.append(summary_of(run, f"mine-{iteration}")["examples"])
    # An LLM's judgments are cached, so a pair of two iterations is one call.
    pairs = pa.concat_tables(called).group_by(["query_id", "passage_id"]).aggregate([])
    queries = summary_of(run, "mine-1")["queries"]
    return {"calls": round(pairs.num_rows / queries, 4), "examples": round(float(np.mean(examples)), 1)}


def summary_of(run: Run, step: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run.folder / f"steps/{step}.json").read_text())["summary"]
    return summary


def summarize(all_ranks: ByRun, runs: ByRun, test_share: float) -> dict[str, Any]:
    """The result of one condition over all its runs, for the last line."""
    calls, of_all = (float(np.mean([row["calls"] for row in each.values()])) for each in (runs, all_ranks))
    over = "seeds" if len({split for split, _ in runs}) == 1 else "splits"
    change = {}
    for metric in METRICS:
        gains = {at: common.relative_gain(all_ranks[at], row, metric) for at, row in runs.items()}
        if over == "seeds":  # each is independent, given the split
            change[metric] = common.summarize({(seed, 0): gain for (_, seed), gain in gains.items()}, 0.0)
        else:
            change[metric] = common.summarize(gains, test_share)
    return {
        **common.mean_row(list(runs.values())),
        "chosen": [row["chosen"] for row in runs.values()],
        "fewer_calls": round(of_all / calls, 2),
        "change": change,
        "interval_over": over,
    }


def print_results(results: Mapping[str, Mapping[str, Any]]) -> None:
    heads = ["condition", "calls", "fewer", "examples"]
    heads += [f"{head} {metric}" for metric in METRICS for head in ("test", "change")]
    print("\n" + "  ".join(f"{head:>14}" for head in heads))
    for condition, result in results.items():
        cells = [condition, f"{result['calls']:.2f}", f"{result['fewer_calls']:.1f}x", f"{result['examples']:.0f}"]
        for metric in METRICS:
            change = result["change"][metric]
            interval = "" if change["low"] is None else f" {change['low']:+.1%} to {change['high']:+.1%}"
            cells += [f"{result[metric]:.4f}", f"{change['mean']:+.1%}{interval}"]
        print("  ".join(f"{cell:>14}" for cell in cells), flush=True)


def invalid(options: Namespace) -> str:
    """Why the settings of a condition are not valid; empty if all are."""
    run_file, data = common.data_options(options.data)
    for condition in (ALL, *options.only):
        try:
            common.load(run_file, [*data, f"judge={json.dumps(judge_of(condition, options, 0, 0))}", *options.set])
        except UserError as error:
            return f"{condition}: {error}"
    return ""


def main() -> int:
    parser = common.parser(__doc__)
    parser.set_defaults(splits=3, seeds=2)  # an interval needs several splits
    parser.add_argument("data", type=Path, nargs="?", default=ARCHIVE)
    parser.add_argument("--answers", choices=[KNOWN, HIDDEN], default=HIDDEN, help="whether mining knows the answers")
    parser.add_argument("--kappa", type=float, default=0.7, help="kappa of the LLM's stand-in")
    parser.add_argument("--first-kappa", type=float, default=0.5, help="kappa of the first judge of the cascade")
    parser.add_argument("--similarity", type=float, default=0.0, help="judge.noise.similarity of both judges")
    parser.add_argument("--only", nargs="+", choices=[STOP, CASCADE], default=[STOP, CASCADE])
    options = parser.parse_args()
    if common.missing_file(options.data, options.retention):
        return 2
    if problem := invalid(options):
        print(problem, file=sys.stderr)
        return 2
    path = options.results or common.ROOT / "out/bench-cascade.jsonl"
    results = Results(path, Path(__file__).name, "bench_noise.py", WITHOUT_ANSWERS, any_version=options.any_version)
    data_key = common.data_key(options)
    shares = common.load(*common.data_options(options.data)).prepare.split
    by_condition: dict[str, dict[tuple[int, int], Row]] = {condition: {} for condition in (ALL, *options.only)}
    summary: dict[str, dict[str, Any]] = {}
    total, done, trained, start = options.splits * options.seeds * len(by_condition), 0, 0, time.monotonic()
    for split in range(options.splits):
        with common.store_folder(options.store / f"split-{split}" if options.store else None) as store:
            for seed in range(options.seeds):
                for condition, rows in by_condition.items():
                    key = {**key_of(condition, options, split, seed), **data_key}
                    done += 1
                    if not results.has(key):
                        pace = f"; {(time.monotonic() - start) / trained / 60:.0f} min per run" if trained else ""
                        print(f"\nrun {done} of {total}: split {split}, seed {seed}, {condition}{pace}", flush=True)
                        trained += 1
                    rows[split, seed] = results.once(key, partial(measure, condition, options, split, seed, store))
                summary = {
                    each: summarize(by_condition[ALL], rows, shares.test / shares.train)
                    for each, rows in by_condition.items()
                }
                print_results(summary)
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
