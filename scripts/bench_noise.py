"""Noise rehearsal: the share of the gain that is left when the judge errs, with and without known answers.

Usage: python scripts/bench_noise.py [DATA] [--retention BEIR] [--kappa 0.7 0.5 0.3] [--similarity 0 0.5]
       [--answers known hidden] [--splits 1 --seeds 2] [--finished-only]

DATA as in bench_quality.py. Each condition is a complete run of one iteration with the setting judge.noise (kappa,
similarity, and the run's seed). The judge without errors (kappa 1) is the reference. With known answers, mining uses
the answer key of the training queries, as by default. With hidden answers, retrieving and mining do not have it
(without_answers.py), so a query's positives are what the judge grades as relevant. Validation and test always use the
key, also to choose the model.

gain: of the model that the run hands over, relative to the base model of the run. gain_share: the mean gain divided by
that of kappa 1 with the same answers; gain_share_of_default: by that of kappa 1 with known answers. kappa and bias: of
the judgments against the key, measured on the judged pairs. false_positives: share of the examples whose positive has a
grade below 3 by the key; false_negatives: share of those with a negative of grade 3 or 4 by the key. below_base: number
of runs that handed over a model whose test metric is below the base model's.

Finished results are appended to --results (default: out/bench-noise.jsonl), and a restart skips them. With
--finished-only nothing is trained: conditions without a finished result are left out, and shares of conditions that are
not measured are null. The last line is JSON: for each condition its fields (condition), the number of runs, and the
means. pairs: number of pairs of runs of which a share is the mean, and worst the lowest.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import bench_common as common
import numpy as np
import pyarrow as pa
from bench_common import METRICS, Results, Row, Run, TestSet
from bench_quality import ARCHIVE
from pydantic import ValidationError

from pyrite import tables
from pyrite.config import problems
from pyrite.evaluation.agreement import quadratic_kappa
from pyrite.judges.base import RELEVANT, Pair
from pyrite.judges.labels import LabelsJudge
from pyrite.spec import NoiseSpec
from pyrite.training.title_pairs import TITLE

KAPPAS, SIMILARITIES = (0.7, 0.5, 0.3), (0.0, 0.5)
KNOWN, HIDDEN = "known", "hidden"
WITHOUT_ANSWERS = "without_answers.py"

#: What is reported about a run, besides metrics.
QUALITY = ("kappa", "bias", "examples", "false_positives", "false_negatives")

#: The results of one condition by (split, seed).
ByRun = Mapping[tuple[int, int], Row]


class Condition(NamedTuple):
    """A judge, and whether mining knows the answers. ``kappa`` 1: the judge has no errors."""

    answers: str
    kappa: float
    similarity: float

    @property
    def name(self) -> str:
        """The name in results and of the runs."""
        suffix = f"-similarity-{self.similarity:g}" if self.similarity else ""
        return f"{self.answers}-kappa-{self.kappa:g}{suffix}"

    @property
    def reference(self) -> "Condition":
        """The condition with the same answers and a judge without errors."""
        return Condition(self.answers, 1.0, 0.0)

    def overrides(self, seed: int) -> list[str]:
        noise = {"kappa": self.kappa, "similarity": self.similarity, "seed": seed}
        settings = ["iterations=1", "evaluate.smaller=false"]
        return [*settings, f"judge.noise={json.dumps(noise) if self.kappa < 1 else 'null'}"]


#: The condition of Pyrite's published results.
DEFAULT = Condition(KNOWN, 1.0, 0.0)


def conditions(answers: Sequence[str], kappas: Sequence[float], similarities: Sequence[float]) -> list[Condition]:
    """The conditions to measure, each after its reference. The default is the first."""
    found = [DEFAULT]
    for each in answers:
        found.append(Condition(each, 1.0, 0.0))
        found += [Condition(each, kappa, similarity) for kappa in kappas for similarity in similarities if kappa != 1]
    return list(dict.fromkeys(found))


class Rehearsal:
    """The runs of one split, in one store."""

    def __init__(self, options: Namespace, results: Results, split: int, store: Path):
        self._options, self._results, self._split, self._store = options, results, split, store
        self._data_key = common.data_key(options)

    def row(self, condition: Condition, seed: int) -> Row:
        return self._results.once(self._key(condition, seed), lambda: self._measure(condition, seed))

    def is_finished(self, condition: Condition, seed: int) -> bool:
        return self._results.has(self._key(condition, seed))

    def _key(self, condition: Condition, seed: int) -> dict[str, Any]:
        return {"condition": condition.name, "split": self._split, "seed": seed, **self._data_key}

    def _measure(self, condition: Condition, seed: int) -> Row:
        options = self._options
        run_file, data = common.data_options(options.data)
        seeds = [f"prepare.seed={self._split}", f"seed={seed}"]
        overrides = [*data, *options.set, *seeds, *common.retention_options(options.retention)]
        program = [str(common.SCRIPTS / WITHOUT_ANSWERS)] if condition.answers == HIDDEN else ["-m", "pyrite"]
        name = f"{condition.name}-{seed}"
        run = common.train(run_file, self._store, name, [*overrides, *condition.overrides(seed)], program)
        run = replace(run, seconds=None)  # runs share the store
        base = run.row("base")
        return {
            **run.handed_over(TestSet(run, options.retention)),
            "base": {metric: base[metric] for metric in METRICS},
            **judged_quality(run),
        }


def judged_quality(run: Run) -> Row:
    """What the judge and the examples of a run's first iteration are worth by the answer key: QUALITY."""
    names = ("queries/queries", "corpus/passages", "queries/qrels")
    schemas = (tables.QUERIES, tables.PASSAGES, tables.QRELS)
    files = (run.folder / f"{name}.parquet" for name in names)
    key = LabelsJudge.of(*(tables.read(file, schema) for file, schema in zip(files, schemas, strict=True)))
    folder = run.folder / "iterations/1"
    shards = [tables.read(path, tables.JUDGMENTS) for path in sorted((folder / "judgments").glob("shard-*.parquet"))]
    judgments = pa.concat_tables(shards)
    pairs = map(Pair, judgments["query_id"].to_pylist(), judgments["passage_id"].to_pylist())
    truth = np.array([key.true_grade(pair) for pair in pairs], dtype=np.int64)
    judged = judgments["grade"].to_numpy().astype(np.int64)
    examples = tables.read(folder / "examples.parquet", tables.examples(run.spec.mine.num_negatives)).to_pylist()
    mined = [example for example in examples if example["kind"] != TITLE]

    def relevant(query: str, passage: str) -> bool:
        return key.true_grade(Pair(query, passage)) >= RELEVANT

    wrong_positives = [not relevant(each["query_id"], each["positive_id"]) for each in mined]
    wrong_negatives = [any(relevant(each["query_id"], id) for id in each["negative_ids"]) for each in mined]
    return {
        "kappa": round(quadratic_kappa(truth, judged), 4),
        "bias": round(float(np.mean(judged - truth)), 4),
        "examples": len(mined),
        "false_positives": round(float(np.mean(wrong_positives)), 4),
        "false_negatives": round(float(np.mean(wrong_negatives)), 4),
    }


def gain(row: Row, metric: str) -> float:
    """The relative gain of the model that a run hands over."""
    return common.relative_gain(row["base"], row, metric)


def gain_share(reference: ByRun, other: ByRun, metric: str) -> dict[str, Any]:
    """The mean gain of ``other`` as a share of that of ``reference``, and the lowest share of their pairs of runs.

    None if the reference is not measured or gains nothing.
    """
    gains = [(gain(reference[run], metric), gain(row, metric)) for run, row in other.items() if run in reference]
    if not gains:
        return {"mean": None, "worst": None, "pairs": 0}
    of_reference, of_other = np.mean(gains, axis=0)
    shares = [mine / full for full, mine in gains if full > 0]
    return {
        "mean": round(float(of_other / of_reference), 4) if of_reference > 0 else None,
        "worst": round(min(shares), 4) if len(shares) == len(gains) else None,
        "pairs": len(gains),
    }


def summarize(by_condition: Mapping[Condition, ByRun], condition: Condition) -> dict[str, Any]:
    """The result of one condition over all its runs, for the last line."""
    runs = by_condition[condition]

    def shares(reference: Condition) -> dict[str, Any]:
        return {metric: gain_share(by_condition.get(reference, {}), runs, metric) for metric in METRICS}

    return {
        "condition": condition._asdict(),
        **common.mean_row(list(runs.values())),
        "chosen": [row["chosen"] for row in runs.values()],
        "gain": {metric: round(float(np.mean([gain(row, metric) for row in runs.values()])), 4) for metric in METRICS},
        "gain_share": shares(condition.reference),
        "gain_share_of_default": shares(DEFAULT),
        "below_base": {metric: sum(row[metric] < row["base"][metric] for row in runs.values()) for metric in METRICS},
        "runs": len(runs),
    }


def print_results(results: Mapping[Condition, Mapping[str, Any]]) -> None:
    """Print one line per condition."""
    heads = ["answers", "judge", "similarity", "measured", "bias"]
    heads += [f"{head} {metric}" for metric in METRICS for head in ("gain", "share")]
    heads += ["examples", "false pos.", "false neg.", "below base"]
    print("\n" + "  ".join(f"{head:>10}" for head in heads))
    for condition, result in results.items():
        cells = [condition.answers, f"{condition.kappa:g}", f"{condition.similarity:g}"]
        cells += [f"{result['kappa']:.3f}", f"{result['bias']:+.2f}"]
        for metric in METRICS:
            share = result["gain_share"][metric]["mean"]
            cells += [f"{result['gain'][metric]:+.1%}", "" if share is None else f"{share:.0%}"]
        cells += [f"{result['examples']:.0f}", *(f"{result[name]:.1%}" for name in QUALITY[3:])]
        cells.append(f"{max(result['below_base'].values())} of {result['runs']}")
        print("  ".join(f"{cell:>{max(10, len(head))}}" for cell, head in zip(cells, heads, strict=True)), flush=True)


def invalid(chosen: Sequence[Condition]) -> str:
    """Why a condition's settings are not valid; empty if all are."""
    for condition in chosen:
        try:
            NoiseSpec(kappa=condition.kappa, similarity=condition.similarity)
        except ValidationError as error:
            return f"{condition.name}: {' '.join(text for _, text in problems(error))}"
    return ""


def main() -> int:
    parser = common.parser(__doc__)
    parser.set_defaults(seeds=2)
    parser.add_argument("data", type=Path, nargs="?", default=ARCHIVE)
    parser.add_argument("--kappa", type=float, nargs="+", default=KAPPAS, help="kappas of the judge, besides 1")
    parser.add_argument("--similarity", type=float, nargs="+", default=SIMILARITIES)
    parser.add_argument("--answers", nargs="+", choices=[KNOWN, HIDDEN], default=[KNOWN, HIDDEN])
    parser.add_argument("--finished-only", action="store_true", help="train nothing; summarize the finished results")
    options = parser.parse_args()
    if common.missing_file(options.data, options.retention):
        return 2
    chosen = conditions(options.answers, options.kappa, options.similarity)
    if problem := invalid(chosen):
        print(problem, file=sys.stderr)
        return 2
    path = options.results or common.ROOT / "out/bench-noise.jsonl"
    results = Results(path, Path(__file__).name, WITHOUT_ANSWERS, any_version=options.any_version)
    by_condition: dict[Condition, dict[tuple[int, int], Row]] = {}
    for split in range(options.splits):
        with common.store_folder(options.store / f"split-{split}" if options.store else None) as store:
            rehearsal = Rehearsal(options, results, split, store)
            for seed in range(options.seeds):
                for condition in chosen:
                    if not options.finished_only or rehearsal.is_finished(condition, seed):
                        by_condition.setdefault(condition, {})[split, seed] = rehearsal.row(condition, seed)
                print_results({condition: summarize(by_condition, condition) for condition in by_condition})
    if not by_condition:
        print(f"{path} has no finished result of these conditions, data and version of the code.", file=sys.stderr)
        return 2
    print(json.dumps({condition.name: summarize(by_condition, condition) for condition in by_condition}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
