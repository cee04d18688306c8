"""What the quality benchmarks share: run files and runs, scores on a run's test questions, and resumable results."""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from pyrite import tables
from pyrite.config import load
from pyrite.embedding.encoder import Encoder, in_memory
from pyrite.embedding.models import base_folder
from pyrite.evaluation import bm25, scoring
from pyrite.evaluation.significance import compare, relative_lower_bound
from pyrite.progress import NullProgress
from pyrite.spec import ModelSpec, RunSpec
from pyrite.stages.scoring import RANKED, Corpus, rank, read_retention
from pyrite.store import open_store, sha256_file

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
EXAMPLES = ROOT / "src/pyrite/examples"
METRICS = ("mrr@5", "dcg@5")

RETENTION = ("retention", "retention_change", "retention_bound")

#: Level of the one-sided bound of retention, and resamples of the bootstrap.
CONFIDENCE, RESAMPLES = 0.8, 10_000

#: The values and the cluster (topic) of every query, which intervals need and the last line does not show.
PER_QUERY = "per_query"
CLUSTERS = "clusters"

Row = dict[str, Any]


# --- command line -----------------------------------------------------------------------------------------------------


def parser(description: str | None, *, splits: bool = True) -> argparse.ArgumentParser:
    """The options that all quality benchmarks have."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--retention", type=Path, help="BEIR folder or archive of another domain: check for forgetting")
    if splits:
        found.add_argument("--splits", type=int, default=1, help="number of splits (prepare.seed 0, 1, ...)")
    found.add_argument("--seeds", type=int, default=1, help="number of training seeds per split (seed 0, 1, ...)")
    found.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting in all runs")
    found.add_argument("--store", type=Path, help="folder for the runs (default: a temporary folder)")
    found.add_argument("--results", type=Path, help="append results to this JSON-lines file, and skip those in it")
    found.add_argument("--any-version", action="store_true", help="also use results of other versions of the code")
    return found


def data_options(data: Path) -> tuple[Path, list[str]]:
    """The run file for ``data``, a run file itself or a MedQuAD archive or folder, and its overrides."""
    if data.suffix in (".yaml", ".yml"):
        return data.resolve(), []
    return EXAMPLES / "medquad.yaml", [f"source.path={data.resolve()}"]


def retention_options(retention: Path | None) -> list[str]:
    return [f"evaluate.retention.path={_absolute(retention)}"] if retention else []


def _absolute(path: Path) -> Path:
    """``path`` as an absolute path; the name of a built-in set as it is."""
    return path if str(path).startswith("builtin:") else path.resolve()


def missing_file(*paths: Path | None) -> bool:
    """Whether a path does not exist; then reports it."""
    absent = [path for path in paths if path and not str(path).startswith("builtin:") and not path.exists()]
    for path in absent:
        print(f"{path} does not exist. Correct the path; `pyrite fetch medquad data` gets MedQuAD.", file=sys.stderr)
    return bool(absent)


@contextmanager
def store_folder(chosen: Path | None) -> Iterator[Path]:
    """``chosen``, or a temporary folder that is deleted afterwards."""
    if chosen:
        yield chosen.resolve()
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


# --- results ----------------------------------------------------------------------------------------------------------


def code_version(*scripts: str) -> str:
    """Digest of the code that a result depends on: Pyrite's source files, this file and ``scripts`` (file names)."""
    sources = [path for path in (ROOT / "src/pyrite").rglob("*") if path.suffix in (".py", ".yaml")]
    digest = hashlib.sha256()
    for path in sorted({*sources, *(SCRIPTS / name for name in (Path(__file__).name, *scripts))}):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def content_id(path: Path) -> str:
    """An identifier of a file or folder that does not depend on its name; a path that does not exist is its own.

    A file has its size and sha256. A folder has the sha256 of the paths and contents of its files.
    """
    if path.is_file():
        return f"{path.stat().st_size}-{sha256_file(path)}"
    if not path.is_dir():
        return str(path)  # a built-in set, or an object store's URL
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listing = "".join(f"{file.relative_to(path).as_posix()} {sha256_file(file)}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def data_id(data: Path, overrides: Sequence[str]) -> str:
    """An identifier of what a benchmark trains on: its run file and its source, both by content.

    Args:
        data: as in ``data_options``.
        overrides: settings of the benchmark, which may name another source.
    """
    run_file, own = data_options(data)
    source = getattr(load(run_file, [*own, *overrides]).source, "path", None)
    ids = [content_id(run_file), *([content_id(Path(source))] if source else [])]
    return hashlib.sha256(" ".join(ids).encode()).hexdigest()


def data_key(options: argparse.Namespace) -> dict[str, Any]:
    """The part of a result's key that depends on the benchmark's data and settings."""
    return {
        "data": data_id(options.data, options.set),
        "retention": content_id(options.retention) if options.retention else None,
        "set": options.set,
    }


class Results:
    """Finished results by key, in a JSON-lines file, so that an interrupted benchmark resumes. No file: in memory."""

    def __init__(self, path: Path | None, *scripts: str, any_version: bool = False):
        """``scripts``: names of the benchmark's scripts. Results of other versions of them are not used."""
        self._path, self._version = path, code_version(*scripts)
        self._rows: dict[str, Row] = {}
        lines = path.read_text().splitlines() if path and path.exists() else []
        others = 0
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the benchmark was killed while it wrote the line
                continue
            if any_version or entry["code"] == self._version:
                self._rows[_canonical(entry["key"])] = entry["result"]
            else:
                others += 1
        if others:
            print(f"{path}: {others} results of other versions of the code are not used (--any-version uses them)")

    def once(self, key: Mapping[str, Any], compute: Callable[[], Row]) -> Row:
        """The stored result of ``key``, or that of ``compute``, which is then stored."""
        name = _canonical(key)
        if name not in self._rows:
            self._rows[name] = compute()
            if self._path:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                entry = {"key": key, "code": self._version, "result": self._rows[name]}
                with self._path.open("a") as file:
                    # The line break comes first, so that a line that a kill cut short does not spoil this one.
                    file.write("\n" + json.dumps(entry))
        return self._rows[name]

    def has(self, key: Mapping[str, Any]) -> bool:
        return _canonical(key) in self._rows


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


# --- runs and scores --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A finished run.

    ``seconds``: duration of ``pyrite train``, with start-up, validation, test and report; None if it is not comparable,
    because an interrupted run was resumed or other runs share the store.
    """

    store: Path
    name: str
    seconds: int | None

    @property
    def folder(self) -> Path:
        return self.store / "runs" / self.name

    @cached_property
    def spec(self) -> RunSpec:
        return load(self.folder / "run.yaml")

    @cached_property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.folder / "report/report.json").read_text())
        return report

    def row(self, model: str) -> Row:
        """Test metrics of ``model`` from the report, with the values of every query."""
        values = self.report["per_query"][model]
        row = _row([{"metric": m, "query_id": q, "value": v} for m in METRICS for q, v in values[m].items()])
        return {
            **row,
            CLUSTERS: {query: self.report.get("clusters", {}).get(query, query) for query in values["mrr@5"]},
        }

    def handed_over(self, test_set: "TestSet") -> Row:
        """The row of the model that the run hands over, from its report, with its retention and durations.

        ``others`` has the test metrics of the run's other models.
        """
        chosen = self.report["chosen"]
        candidate = next(row for row in self.report["candidates"] if row["name"] == chosen)
        retention = {name: candidate.get(name) for name in RETENTION}
        known = all(isinstance(value, float) for value in retention.values())
        stages = ("embed", "retrieve", "judge", "mine", "finetune")
        steps = [step for step in self.report["steps"]["rows"] if step["step"].split("-")[0] in stages]
        embedded = [step for step in steps if step["step"].startswith("embed-")]
        # In order of iterations: the last model is embedded for validation only.
        training = sum(step["seconds"] or 0 for step in steps if step not in embedded[-1:])
        return {
            **self.row(chosen),
            "chosen": chosen,
            **({name: round(value, 4) for name, value in retention.items()} if known else {}),
            **({} if known else test_set.retention(self.folder / "model")),
            **({} if self.seconds is None else {"seconds": self.seconds, "seconds_training": round(training)}),
            "others": {
                model: {name: round(self.report["means"]["test"][model][name], 4) for name in METRICS}
                for model in self.report["models"]
                if model not in ("base", chosen)
            },
        }


def train(
    run_file: Path, store: Path, name: str, overrides: Sequence[str], program: Sequence[str] = ("-m", "pyrite")
) -> Run:
    """Run ``pyrite train``, or that of another Python ``program``, in its own process.

    Raises:
        CalledProcessError: it fails.
    """
    resumed = (store / "runs" / name).exists()
    command = ["train", str(run_file), *overrides, f"name={name}", "--store", str(store)]
    start = time.monotonic()
    subprocess.run([sys.executable, *program, *command], check=True)
    return Run(store, name, None if resumed else round(time.monotonic() - start))


def prepare(run_file: Path, store: Path, overrides: Sequence[str]) -> Run:
    """Run only the stage ``prepare``, for the tables of a split."""
    command = ["prepare", str(run_file), *overrides, "name=prepared", "--store", str(store)]
    subprocess.run([sys.executable, "-m", "pyrite", *command], check=True)
    return Run(store, "prepared", None)


class TestSet:
    """The test questions and all passages of a run, to score models that are not part of it."""

    __test__ = False  # not a test class

    def __init__(self, run: Run, retention: Path | None):
        self._run, self._retention = run, retention and _absolute(retention)
        self._passages = tables.read(run.folder / "corpus/passages.parquet", tables.PASSAGES)
        queries = tables.read(run.folder / "queries/queries.parquet", tables.QUERIES)
        self._queries = queries.filter(pc.equal(queries["split"], "test"))
        qrels = tables.read(run.folder / "queries/qrels.parquet", tables.QRELS)
        self._qrels = qrels.filter(pc.is_in(qrels["query_id"], self._queries["query_id"].combine_chunks()))

    def score(self, folder: Path | None = None, *, context: bool = True, own_base: bool = False) -> Row:
        """Test metrics of the model in ``folder`` (default: the run's base model), and in context its retention.

        Args:
            context: whether passages are read in context.
            own_base: the model has its own prompts and lengths, and its retention is not compared with the base's.
        """
        encoder = self._encoder(folder, own_base, "float32")  # as evaluate
        ranked = rank(encoder, self._corpus(context), self._question_texts, NullProgress())
        row = _row(scoring.per_query(ranked, self._qrels))
        return {**row, **(self.retention(folder, own_base=own_base) if context else {})}

    def retention(self, folder: Path | None = None, *, own_base: bool = False) -> Row:
        """Mean nDCG@10 on the retention set, its change against the base model's and the one-sided 80% bound of it."""
        if not self._retention:
            return {}
        values = self._retention_values(self._encoder(folder, own_base, "auto"))  # as validate
        row = {"retention": round(float(values.mean()), 4)}
        if folder and not own_base:
            base = self._base_retention
            row["retention_change"] = round(float(values.mean() / base.mean() - 1), 4)
            row["retention_bound"] = round(relative_lower_bound(base, values, CONFIDENCE, RESAMPLES, 0), 4)
        return row

    def _encoder(self, folder: Path | None, own_base: bool, precision: str) -> Encoder:
        spec, store = self._run.spec, open_store(str(self._run.store))
        base = base_folder(spec.model.base, spec.model.revision)
        if own_base:
            assert folder
            spec, base = spec.model_copy(update={"model": ModelSpec(base=str(folder))}), folder
        options = {"precision": precision} if "precision" in {field.name for field in fields(Encoder)} else {}
        return Encoder(folder or base, base, spec, store, **options)

    def bm25(self, *, context: bool = True) -> Row:
        """Test metrics of BM25."""
        ids, texts = self._question_texts
        scores, found = bm25.rank(self._corpus(context).texts, texts, RANKED)
        rankings = tables_of_rankings(ids, [[self._ids[i] for i in row] for row in found], scores.tolist())
        return _row(scoring.per_query(rankings, self._qrels))

    @cached_property
    def _ids(self) -> list[str]:
        ids: list[str] = self._passages["passage_id"].to_pylist()
        return ids

    @cached_property
    def _question_texts(self) -> tuple[list[str], list[str]]:
        return self._queries["query_id"].to_pylist(), self._queries["text"].to_pylist()

    def _corpus(self, context: bool) -> Corpus:
        return Corpus(pa.array(self._ids, pa.string()), in_memory(self._texts(context)))

    def _texts(self, context: bool) -> list[str]:
        texts: list[str] = tables.in_context(self._passages) if context else self._passages["text"].to_pylist()
        return texts

    @cached_property
    def _base_retention(self) -> np.ndarray:
        return self._retention_values(self._encoder(None, False, "auto"))

    def _retention_values(self, encoder: Encoder) -> np.ndarray:
        """nDCG@10 of every query of the retention set, by query id."""
        corpus, queries, qrels = read_retention(str(self._retention))
        rows = scoring.per_query(rank(encoder, corpus, queries, NullProgress()), qrels)
        return np.array([row["value"] for row in rows if row["metric"] == "ndcg@10"])


def tables_of_rankings(queries: list[str], passages: list[list[str]], scores: list[list[float]]) -> Any:
    """A table of rankings, from the passages and scores of each query, best first."""
    rows = [
        {"query_id": query, "passage_id": passage, "rank": position, "score": score}
        for query, found, values in zip(queries, passages, scores, strict=True)
        for position, (passage, score) in enumerate(zip(found, values, strict=True), start=1)
    ]
    return pa.Table.from_pylist(rows, tables.CANDIDATES)


def _row(values: list[dict[str, Any]]) -> Row:
    per_query = {name: {v["query_id"]: v["value"] for v in values if v["metric"] == name} for name in METRICS}
    return {
        **{name: round(float(np.mean(list(each.values()))), 4) for name, each in per_query.items()},
        PER_QUERY: per_query,
    }


# --- statistics -------------------------------------------------------------------------------------------------------


def relative_change(
    base: Mapping[str, float], other: Mapping[str, float], clusters: Mapping[str, str]
) -> dict[str, float | None]:
    """Relative change of the mean over queries, with its 95% interval; None if undefined.

    Args:
        base, other, clusters: the values and the cluster of the same queries, by query id.
    """
    values = (np.array([each[query] for query in base]) for each in (base, other))
    found = compare(*values, RESAMPLES, 0, [clusters[query] for query in base])
    interval = found.relative_interval
    parts = {"mean": found.relative, "low": interval.low, "high": interval.high}
    return {name: round(value, 4) if np.isfinite(value) else None for name, value in parts.items()}


def summarize(gains: Mapping[tuple[int, int], float], test_share: float) -> dict[str, Any]:
    """Mean, 95% interval, extremes and number of losses of paired gains by (split, seed).

    Seeds of one split are averaged first. Splits overlap, so that a plain t interval over them is too narrow: its
    variance is corrected by the ratio of test to training questions (Nadeau and Bengio, Inference for the
    Generalization Error, Machine Learning 52, 2003). With one split, low and high are None.

    Args:
        test_share: number of test questions divided by that of training questions.
    """
    splits = sorted({split for split, _ in gains})
    means = np.array([np.mean([gain for (s, _), gain in gains.items() if s == split]) for split in splits])
    summary: dict[str, Any] = {"mean": round(float(means.mean()), 4), "low": None, "high": None}
    if len(means) > 1:
        error = np.sqrt((1 / len(means) + test_share) * means.var(ddof=1))
        margin = float(stats.t.ppf(0.975, len(means) - 1) * error)
        summary |= {"low": round(summary["mean"] - margin, 4), "high": round(summary["mean"] + margin, 4)}
    return {
        **summary,
        "worst": round(min(gains.values()), 4),
        "best": round(max(gains.values()), 4),
        "losses": sum(gain < 0 for gain in gains.values()),
        "runs": len(gains),
    }


def relative_gain(base: Row, other: Row, metric: str) -> float:
    return float(other[metric] / base[metric] - 1) if base[metric] else float("nan")


def mean_row(rows: Sequence[Row]) -> Row:
    """The mean of every number in ``rows``, also in nested dictionaries, and the first value of anything else.

    The values of every query are left out, and what only some rows have: its mean would be that of other runs.
    """
    names = [name for name in rows[0] if name not in (PER_QUERY, CLUSTERS) and all(name in row for row in rows)]
    return {name: _mean([row[name] for row in rows]) for name in names}


def _mean(values: Sequence[Any]) -> Any:
    if all(isinstance(value, Mapping) for value in values):
        return mean_row(values)
    if all(isinstance(value, int | float) for value in values):
        return round(float(np.mean(values)), 4)
    return values[0]


def print_table(title: str, rows: Mapping[str, Row], reference: str) -> None:
    """Print the rows, with each metric's gain over the row ``reference``."""
    print(f"\n{title}\n{'':22}" + "".join(f"{metric:>18}" for metric in METRICS) + f"{'retention':>18}  notes")
    for name, row in rows.items():
        cells = ""
        for metric in METRICS:
            gain = "" if name == reference else f" ({relative_gain(rows[reference], row, metric):+.1%})"
            cells += f"{f'{row[metric]:.4f}{gain}':>18}"
        change = row.get("retention_change")
        retention = f"{row['retention']:.4f}" if "retention" in row else ""
        retention += f" ({change:+.1%})" if change is not None else ""
        bound = row.get("retention_bound")
        notes = [row.get("chosen", ""), f"bound {bound:+.1%}" if bound is not None else ""]
        notes.append(f"{row['seconds']:.0f} s" if row.get("seconds") else "")
        print(f"{name:22}{cells}{retention:>18}  {', '.join(filter(None, notes))}", flush=True)
