"""Quality on MedQuAD: base model, BM25, Pyrite's defaults and its opponents, on one split and one machine.

Usage: python scripts/bench_quality.py [DATA] [--retention BEIR] [--only NAME ...] [--splits 5 --seeds 2]

DATA is the published MedQuAD archive or folder, or a run file (.yaml). Default: the archive that `pyrite fetch medquad`
downloads to data/. The last line is JSON; all rows are measured on the same test questions:

base, base_context      the base model, without and with each passage's context; always measured
bm25_context            keyword search with context; always measured
ours                    the model that Pyrite's defaults hand over, and the other models of its run under "others"
ours_titles             ours with mine.title_pairs=1000: it also trains on 1,000 pairs of a title and a passage per
                        iteration, of the complete corpus with held-out topics, without held-out questions (--only)
script, script_2        scripts/opponent.py, the plain sentence-transformers script, with one and with two epochs
known                   the public recipe, in our reading (key known_recipe)
mpnet, mpnet_tuned      all-mpnet-base-v2 untuned and tuned with Pyrite's defaults (scripts/mpnet.py; --only mpnet ...)

--only selects among ours and the rows below it. Seconds: of ours, complete runs of `pyrite train` (with validation,
test and report) and, as seconds_training, its steps embed (but the last) to finetune; of the script, loading, mining
and training.
Compare script's seconds with seconds_training. They are comparable only on an otherwise idle machine.

With one split and one seed, each run has its own store, so that no run reuses the embeddings of another. With --splits
and --seeds, runs of a split share a store, so seconds are left out. Then rows are means over runs; mean, low, high and
losses describe the gain of ours over base_context, paired by split (see summarize in bench_common.py), and vs_script
its gain over the script. Finished results are appended to --results (default: out/bench-quality.jsonl), and a restart
skips them. Results of other versions of the code or of the data are not used. Durations that a shared store makes
incomparable are not stored, so a later run with one split and one seed may lack them.
"""

import json
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import bench_common as common
from bench_common import METRICS, Results, Row, Run, TestSet
from mpnet import FOLDER as MPNET

ARCHIVE = common.ROOT / "data/medquad-577bd37b96c0.tar.gz"
OPPONENT = common.SCRIPTS / "opponent.py"
BASE_ROWS = ("base", "base_context", "bm25_context")
CHOICES = ("ours", "ours_titles", "script", "script_2", "known", "mpnet", "mpnet_tuned")
DEFAULT = ("ours", "script", "script_2", "known")
DEFAULT_OF_MANY = ("ours", "script")

#: The override of ours_titles: about as many pairs as there are other examples.
TITLE_PAIRS = "mine.title_pairs=1000"


class Benchmark:
    """One split: its runs, and the rows that are measured on its test questions."""

    def __init__(self, options: Namespace, results: Results, split: int, store: Path):
        self._options, self._results, self._split, self._store = options, results, split, store
        self._run_file, self._data = common.data_options(options.data)
        self._retention = common.retention_options(options.retention)
        self._data_key = common.data_key(options)
        self._prepared: tuple[Run, TestSet] | None = None

    def rows(self, seed: int) -> dict[str, Row]:
        """The rows of one training seed, in the order of the docstring."""
        # Ours comes first: the other rows then read its tables and the embeddings in its store.
        names = sorted(self._options.only, key=CHOICES.index)
        rows = {name: self._once(name, 0 if name == "mpnet" else seed) for name in names if name == "ours"}
        bases = {name: self._once(name, 0) for name in BASE_ROWS}
        rows |= {name: self._once(name, 0 if name == "mpnet" else seed) for name in names if name != "ours"}
        return bases | rows

    def _once(self, name: str, seed: int) -> Row:
        options = self._options
        key = {
            "row": name,
            "split": self._split,
            "seed": seed,
            **self._data_key,
            **({"mpnet": common.content_id(options.mpnet)} if name.startswith("mpnet") else {}),
            **({"options": options.script_options} if name.startswith("script") else {}),
        }
        return self._results.once(key, lambda: self._measure(name, seed))

    def _settings(self, seed: int) -> list[str]:
        return [*self._data, *self._options.set, f"prepare.seed={self._split}", f"seed={seed}"]

    def _train(self, name: str, seed: int, *overrides: str, run_file: Path | None = None) -> Run:
        """Train with the settings of the benchmark. A timed run has its own store."""
        timed = self._options.splits * self._options.seeds == 1
        store = self._store / name if timed else self._store
        settings = [*self._settings(seed), *overrides]
        run = common.train(run_file or self._run_file, store, f"{name.replace('_', '-')}-{seed}", settings)
        return run if timed else Run(run.store, run.name, None)

    def _ours(self, seed: int) -> Row:
        run = self._train("ours", seed, *self._retention)
        self._prepared = self._prepared or (run, TestSet(run, self._options.retention))
        return run.handed_over(self._prepared[1])

    def _test_set(self) -> tuple[Run, TestSet]:
        """A run of this split, whose tables the opponents read, and its test questions."""
        if self._prepared is None:  # an earlier process measured ours
            run = common.prepare(self._run_file, self._store / "prepared", self._settings(0))
            self._prepared = (run, TestSet(run, self._options.retention))
        return self._prepared

    def _measure(self, name: str, seed: int) -> Row:
        if name == "ours":
            return self._ours(seed)
        run, test_set = self._test_set()
        if name == "bm25_context":
            return test_set.bm25()
        if name in BASE_ROWS:
            return test_set.score(context=name == "base_context")
        if name == "ours_titles":
            return self._train(name, seed, *self._retention, TITLE_PAIRS).handed_over(test_set)
        if name == "mpnet":
            return test_set.score(self._options.mpnet, own_base=True)
        if name == "mpnet_tuned":
            tuned = self._train(name, seed, *self._retention, f"model.base={self._options.mpnet}")
            return tuned.handed_over(TestSet(tuned, self._options.retention))
        if name == "known":
            return self._known(run, test_set, seed)
        return self._script(run, test_set, 2 if name == "script_2" else 1, seed)

    def _known(self, run: Run, test_set: TestSet, seed: int) -> Row:
        source = f"source={run.spec.source.model_dump_json()}"
        known = self._train("known", seed, source, run_file=common.EXAMPLES / "known-recipe.yaml")
        # The published recipe uses its last iteration. Pyrite's model selection is not part of it.
        row = test_set.score(known.folder / f"iterations/{known.spec.iterations}/model", context=False)  # as trained
        return {**row, **({} if known.seconds is None else {"seconds": known.seconds})}

    def _script(self, run: Run, test_set: TestSet, epochs: int, seed: int) -> Row:
        output = self._store / f"script-{epochs}-{seed}"
        command = [sys.executable, str(OPPONENT), str(run.folder), str(output)]
        command += ["--epochs", str(epochs), "--seed", str(seed), "--model", run.spec.model.base]
        command += shlex.split(self._options.script_options)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return {**test_set.score(output / "model"), **json.loads(done.stdout.splitlines()[-1])}


def result_of(by_run: dict[tuple[int, int], dict[str, Row]], test_share: float) -> dict[str, Any]:
    """The last line: the rows of one run; of several, their means, and the gains of ours by (split, seed)."""
    first = next(iter(by_run.values()))
    many = len(by_run) > 1
    result: dict[str, Any] = {}
    for name in first:
        row = common.mean_row([rows[name] for rows in by_run.values()])
        if many:
            row = {key: value for key, value in row.items() if not key.startswith("seconds")}
            if name == "ours":
                row["chosen"] = sorted({rows[name]["chosen"] for rows in by_run.values()})
        result["known_recipe" if name == "known" else name] = row
    if many and "ours" in first:
        gains = {name: gains_over(by_run, "base_context", name, test_share) for name in METRICS}
        parts = ("mean", "low", "high", "losses", "worst", "best")
        result |= {part: {name: gains[name][part] for name in METRICS} for part in parts}
        result["runs"] = len(by_run)
        if "script" in first:
            result["vs_script"] = {name: gains_over(by_run, "script", name, test_share) for name in METRICS}
    return result


def gains_over(
    by_run: dict[tuple[int, int], dict[str, Row]], opponent: str, metric: str, test_share: float
) -> dict[str, Any]:
    """Summary of the relative gains of ours over ``opponent``, paired by run."""
    gains = {run: common.relative_gain(rows[opponent], rows["ours"], metric) for run, rows in by_run.items()}
    return common.summarize(gains, test_share)


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=ARCHIVE)
    parser.add_argument("--only", nargs="+", choices=CHOICES, help="rows to measure besides base and BM25")
    parser.add_argument("--mpnet", type=Path, default=MPNET, help="folder of all-mpnet-base-v2")
    parser.add_argument(
        "--script-options", default="", metavar="TEXT", help="options of opponent.py, e.g. '--learning-rate 1e-4'"
    )
    options = parser.parse_args()
    many = options.splits * options.seeds > 1
    options.only = options.only or (DEFAULT_OF_MANY if many else DEFAULT)
    wants_mpnet = any(name.startswith("mpnet") for name in options.only)
    if common.missing_file(options.data, options.retention, options.mpnet if wants_mpnet else None):
        return 2
    if many and not options.results:
        options.results = common.ROOT / "out/bench-quality.jsonl"
    results = Results(options.results, Path(__file__).name, OPPONENT.name, any_version=options.any_version)
    by_run: dict[tuple[int, int], dict[str, Row]] = {}
    for split in range(options.splits):
        with common.store_folder(options.store / f"split-{split}" if options.store else None) as store:
            benchmark = Benchmark(options, results, split, store)
            for seed in range(options.seeds):
                by_run[split, seed] = benchmark.rows(seed)
                common.print_table(f"split {split}, seed {seed}", by_run[split, seed], "base_context")
    shares = common.load(*common.data_options(options.data)).prepare.split
    print(json.dumps(result_of(by_run, shares.test / shares.train)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
