"""The frontier of judging fewer pairs: LLM calls and useful examples of each way to choose pairs, without training.

Usage: python scripts/bench_choosing.py STORE RUN [--iteration N] [--seeds N] [--plot FILE.svg]

RUN is a run in the folder STORE with the candidates of iteration N (1), for example after

    pyrite train medquad.yaml name=RUN --store STORE     # or only: pyrite prepare, pyrite retrieve -i 1

Its candidates are judged again in each way, by the run's answer key or by judges with simulated errors (judge.noise),
and mined with the run's mine settings. The LLM has kappa 1 (the key) or .7, and the cheap first judge of a cascade
kappa .5; similarity 0 and .5. With known answers, mining uses the answer key of the training queries, as by default;
with hidden answers, a query's positives are what the judge grades as relevant.

calls: pairs that the LLM judges, per query. useful: examples whose positive is relevant (grade 3 or 4) and whose
negatives are not, by the key. grouped: share of the examples that share a batch with a neighbour on purpose
(mine.neighbours), which needs judged neighbours. by_first: pairs that the first judge of a cascade decides; error:
share of its audited decisions that the LLM contradicts. These are means over noise seeds. fewer_calls (than "all
ranks"), useful_share (of those of "all ranks") and calls_per_useful are ratios of such means, with the lowest and the
highest ratio of a single seed. The last line is JSON. scripts/bench_cascade.py trains.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pyrite import tables
from pyrite.config import load
from pyrite.judges import Judge, Judgment, Pair, open_judge
from pyrite.judges.base import RELEVANT
from pyrite.judges.cascade import CascadeSession
from pyrite.judges.labels import LabelsJudge
from pyrite.judges.session import Block
from pyrite.progress import NullProgress
from pyrite.ragged import Lists
from pyrite.spec import CascadeJudgeSpec, LabelsJudgeSpec, NoiseSpec, RunSpec
from pyrite.stages.blocks import Selection, of_queries
from pyrite.stages.cascade import decide, draw_pilot, fit, graded_by_both
from pyrite.stages.final_examples import final_examples
from pyrite.stages.inputs import passages_by_query
from pyrite.stages.pairs import pairs_key, shard_of
from pyrite.training import mining
from pyrite.training.merging import group_neighbours
from pyrite.training.mining import Candidate, Example

#: Each shard has its own pilot, as in a run.
SHARDS = 2
FIRST_KAPPA, LLM_KAPPA, SIMILARITIES = 0.5, 0.7, (0.0, 0.5)
KNOWN, HIDDEN = "known", "hidden"
ALL = "all ranks"

Row = dict[str, float]


class Way(NamedTuple):
    """A way to choose the pairs that the LLM judges."""

    rank_window: int | None = None
    patience: int | None = None
    stop: bool = False
    cascade: bool = False


WAYS = {
    ALL: Way(),
    "window 10": Way(rank_window=10),
    "patience 5": Way(patience=5),
    "stop": Way(stop=True),
    "stop, window 10": Way(stop=True, rank_window=10),
    "cascade": Way(cascade=True),
    "cascade, patience 5": Way(cascade=True, patience=5),
    "cascade, stop": Way(cascade=True, stop=True),
    "cascade, stop, window 10": Way(cascade=True, stop=True, rank_window=10),
}

#: The ways in the plot, and their labels: the others would hide them.
PLOTTED = {
    ALL: "all 50",
    "window 10": "window 10",
    "patience 5": "patience 5",
    "stop": "stop",
    "cascade, stop": "cascade (default)",
    "cascade, stop, window 10": "cascade, window 10",
}


class TableJudge(Judge):
    """Answers from a table of judgments."""

    fingerprint, in_flight = "table", 1

    def __init__(self, judgments: Mapping[Pair, Judgment]):
        self._judgments = judgments

    async def grade(self, pair: Pair) -> Judgment:
        return self._judgments[pair]


def without_known(pairs: pa.Table) -> pa.Table:
    """The candidates among PAIRS, as if the data set had no known answers."""
    candidates = pairs.filter(pairs["rank"].is_valid())
    for name in ("known", "relevant", "sampled"):
        column = candidates.schema.get_field_index(name)
        candidates = candidates.set_column(column, name, pa.array([False] * candidates.num_rows))
    return candidates


class Bench:
    """The candidates of one iteration of a run, and their true grades."""

    def __init__(self, folder: Path, iteration: int):
        self.spec = load(folder / "run.yaml")
        self.queries = tables.read(folder / "queries/queries.parquet", tables.QUERIES)
        self.passages = tables.read(folder / "corpus/passages.parquet", tables.PASSAGES)
        self.qrels = tables.read(folder / "queries/qrels.parquet", tables.QRELS)
        self.candidates, self._first_candidates = (
            tables.read(folder / f"iterations/{i}/candidates.parquet", tables.CANDIDATES) for i in (iteration, 1)
        )
        key = LabelsJudge.of(self.queries, self.passages, self.qrels)
        columns = (self.candidates[name].to_pylist() for name in ("query_id", "passage_id"))
        self.pairs = list(map(Pair, *columns))
        self.truth = {pair: key.true_grade(pair) for pair in self.pairs}
        #: PAIRS with known answers and with hidden ones.
        files = [folder / pairs_key(iteration, shard) for shard in range(self.spec.judge.shards)]
        known = pa.concat_tables([tables.read(file, tables.PAIRS) for file in files])
        self.tables = {KNOWN: known, HIDDEN: without_known(known)}
        self.known = passages_by_query(self.qrels)
        self.by_query = {
            query: list(rows) for query, rows in groupby(self.candidates.to_pylist(), key=lambda row: row["query_id"])
        }
        self._is_duplicate = mining.duplicate_check(mining.shingles_by_id(self.passages))

    def judgments(self, noise: NoiseSpec | None) -> dict[Pair, Any]:
        """The judgments of all pairs by the labels with simulated errors."""
        spec: RunSpec = self.spec.model_copy(update={"judge": LabelsJudgeSpec(noise=noise)})
        judge = open_judge(spec.main_judge, self.queries, self.passages, self.qrels)
        judge.fit(lambda: self._first_candidates, spec.retrieve.range_max, list(self.by_query))

        async def grade_all() -> dict[Pair, Any]:
            return {pair: await judge.grade(pair) for pair in self.pairs}

        return asyncio.run(grade_all())

    def measure(
        self,
        way: Way,
        answers: str,
        llm: Mapping[Pair, Judgment],
        first: Mapping[Pair, Judgment],
    ) -> Row:
        """Judge with one way, mine, and count."""
        cascade = CascadeJudgeSpec(first=LabelsJudgeSpec(), second=LabelsJudgeSpec())
        mine = self.spec.mine.model_copy(update={"known_first": answers == KNOWN})
        known = self.known if answers == KNOWN else passages_by_query()
        all_known = not (way.stop and mine.uses_known_answers)
        selection = Selection(way.rank_window, all_known)
        called: dict[Pair, Judgment] = {}
        graded: dict[Pair, Judgment] = {}
        wrong: list[bool] = []
        for shard in range(SHARDS):
            ids = [query for query in self.by_query if shard_of(query, SHARDS) == shard]
            own = of_queries(self.tables[answers], pa.array(ids, pa.string()))
            queries = selection.queries(own)
            block = Block(queries, known, final_examples(mine, own) if way.stop else None)
            session = CascadeSession(TableJudge(llm), None, len(self.pairs), 0.0, NullProgress(), patience=way.patience)
            blocks = [block]
            if way.cascade:
                in_pilot = set(draw_pilot(ids, cascade.pilot))
                selected = selection.queries(own, with_known=all_known)
                graded_first = [first[Pair(query, id)].row("first") for query, ids in selected for id in ids]
                table = pa.Table.from_pylist(graded_first, tables.JUDGMENTS)
                rest = replace(block, queries=[each for each in queries if each[0] not in in_pilot], new=[], skipped={})
                block.queries = [each for each in queries if each[0] in in_pilot]
                asyncio.run(session.judge_blocks([block]))
                if fitted := fit(graded_by_both(table, session.results(block))):
                    of_rest = of_queries(table, pa.array([query for query, _ in rest.queries], pa.string()))
                    rest.decided = decide(of_rest, fitted, known, cascade.tolerance, mine)
                    session.audit = cascade.audit
                blocks.append(rest)
            asyncio.run(session.judge_blocks(blocks[-1:]))
            for each in blocks:
                requested = [
                    Pair(query, id) for query, ids in each.queries for id in session.requested(each, query, ids)
                ]
                called |= {pair: llm[pair] for pair in requested}
                graded |= each.decided
            wrong += [(each.first >= RELEVANT) != (each.second >= RELEVANT) for each in session.audited]
        graded |= called
        return {
            "calls": len(called) / len(self.by_query),
            **self._mined(graded, known, mine),
            "by_first": len(graded) - len(called),
            "audited": len(wrong),
            "audit_error": float(np.mean(wrong)) if wrong else 0.0,
        }

    def _mined(self, graded: Mapping[Pair, Judgment], known: Mapping[str, set[str]], mine: Any) -> Row:
        judged = [
            (query, [self._candidate(query, row, graded, known.get(query, set())) for row in rows])
            for query, rows in self.by_query.items()
        ]
        examples = [
            (query, example)
            for query, own in judged
            for example in mining.mine_query(own, known.get(query, set()), mine, self._is_duplicate)[0]
        ]

        def relevant(query: str, candidate: Candidate) -> bool:
            return self.truth[Pair(query, candidate.passage_id)] >= RELEVANT

        useful = sum(
            relevant(query, e.positive) and not any(relevant(query, n) for n in e.negatives) for query, e in examples
        )
        groups = self._groups(examples, judged, known, mine.neighbours)
        sizes = Counter(groups)
        return {
            "examples": len(examples),
            "hard": sum(e.kind == "hard" for _, e in examples),
            "useful": useful,
            "grouped": sum(sizes[group] > 1 for group in groups) / max(1, len(groups)),
        }

    def _groups(
        self,
        examples: Sequence[tuple[str, Example]],
        judged: Sequence[tuple[str, list[Candidate]]],
        known: Mapping[str, set[str]],
        size: int,
    ) -> list[int]:
        """The groups of the examples (``group_neighbours``)."""
        number = {passage: row for row, passage in enumerate(self.passages["passage_id"].to_pylist())}
        row_of = {query: row for row, (query, _) in enumerate(judged)}
        barred_ids = [
            {*known.get(query, ()), *(c.passage_id for c in own if c.grade is None or c.known or c.grade >= RELEVANT)}
            for query, own in judged
        ]
        lists = [
            [[number[c.passage_id] for c in own] for _, own in judged],
            [[number[id] for id in ids] for ids in barred_ids],
        ]
        candidates, barred = (
            Lists.group(
                np.repeat(np.arange(len(each)), [len(own) for own in each]),
                np.array([value for own in each for value in own], np.int64),
                len(each),
            )
            for each in lists
        )
        chosen = [[number[c.passage_id] for c in (each.positive, *each.negatives)] for _, each in examples]
        queries = np.array([row_of[query] for query, _ in examples], np.int64)
        passages = np.array(chosen, np.int64).reshape(len(examples), -1)
        groups: list[int] = group_neighbours(queries, passages, candidates, barred, size).tolist()
        return groups

    @staticmethod
    def _candidate(query: str, row: dict[str, Any], graded: Mapping[Pair, Judgment], known: set[str]) -> Candidate:
        judgment = graded.get(Pair(query, row["passage_id"]))
        grades = (None, None) if judgment is None else (judgment.grade, judgment.expected)
        return Candidate(row["passage_id"], row["rank"], row["score"], *grades, row["passage_id"] in known)


def summary(rows: Sequence[Row], every: Sequence[Row], queries: int) -> Row:
    """Means over seeds; three ratios of such means, each with the lowest and the highest ratio of a single seed.

    Args:
        every: the rows of ALL with the same seeds.
        queries: number of queries.
    """
    found = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    calls, useful, all_calls, all_useful = (
        np.array([row[name] for row in each]) for each in (rows, every) for name in ("calls", "useful")
    )
    ratios = {
        "fewer_calls": (all_calls, calls),
        "useful_share": (useful, all_useful),
        "calls_per_useful": (calls * queries, useful),
    }
    for name, (above, below) in ratios.items():
        single = above / np.maximum(below, 1e-9)
        found[name] = float(above.sum() / max(below.sum(), 1e-9))
        found |= {f"{name}_low": float(single.min()), f"{name}_high": float(single.max())}
    return {name: round(value, 4) for name, value in found.items()}


def conditions(seeds: int) -> dict[str, list[tuple[NoiseSpec, NoiseSpec | None]]]:
    """The errors of the first judge and of the LLM, by condition and seed."""

    def noise(kappa: float, similarity: float, seed: int) -> NoiseSpec:
        return NoiseSpec(kappa=kappa, similarity=similarity, seed=seed)

    found: dict[str, list[tuple[NoiseSpec, NoiseSpec | None]]] = {
        "key": [(noise(FIRST_KAPPA, 0.0, 2 * seed + 1), None) for seed in range(seeds)]
    }
    for similarity in SIMILARITIES:
        found[f"kappa {LLM_KAPPA}, similarity {similarity:g}"] = [
            (noise(FIRST_KAPPA, similarity, 2 * seed + 1), noise(LLM_KAPPA, similarity, 2 * seed + 2))
            for seed in range(seeds)
        ]
    return found


def draw_plot(results: Mapping[str, Mapping[str, Row]], path: Path) -> None:
    """Plot useful examples against LLM calls per query with hidden answers, one panel per LLM.

    With known answers, nearly every example is useful in all ways.
    """
    import matplotlib

    matplotlib.use("Agg")
    # The same file for the same results, with text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "pyrite", "svg.fonttype": "none"})
    from matplotlib import pyplot, ticker

    names = [name.removeprefix(f"{HIDDEN}: ") for name in results if name.startswith(HIDDEN)]
    figure, axes = pyplot.subplots(1, len(names), figsize=(7.2, 3.1), sharex=True, sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        rows = results[f"{HIDDEN}: {name}"]
        for number, (way, label) in enumerate(PLOTTED.items()):
            style = {"marker": "s" if WAYS[way].cascade else "o", "color": f"C{number}"}
            share, low, high = (rows[way][f"useful_share{part}"] for part in ("", "_low", "_high"))
            # The ratio of the means is within the range of the ratios, except for rounding.
            error = [[max(0.0, share - low)], [max(0.0, high - share)]]
            axis.errorbar(rows[way]["calls"], share, yerr=error, linestyle="none", label=label, **style)
        axis.set_xscale("log")
        axis.set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(ticker.MultipleLocator(0.05))
        axis.yaxis.set_major_formatter("{x:.0%}")
        axis.set_title(f"LLM: {name}", fontsize=9)
        axis.set_xlabel("LLM calls per query")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("useful examples")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncol=3, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("run")
    parser.add_argument("--iteration", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3, help="number of noise seeds")
    parser.add_argument("--plot", type=Path, help="write the frontier to this SVG or PNG file")
    arguments = parser.parse_args()
    folder = arguments.store / "runs" / arguments.run
    if not (folder / f"iterations/{arguments.iteration}/candidates.parquet").exists():
        print(f"{folder} has no candidates of iteration {arguments.iteration}. Give a finished run.", file=sys.stderr)
        return 2
    bench = Bench(folder, arguments.iteration)
    results: dict[str, dict[str, Row]] = {}
    for name, noises in conditions(arguments.seeds).items():
        rows: dict[tuple[str, str], list[Row]] = {}
        for of_first, of_llm in noises:
            first, llm = bench.judgments(of_first), bench.judgments(of_llm)
            for answers in (KNOWN, HIDDEN):
                for way, settings in WAYS.items():
                    rows.setdefault((answers, way), []).append(bench.measure(settings, answers, llm, first))
        for answers in (KNOWN, HIDDEN):
            results[f"{answers}: {name}"] = {
                way: summary(rows[answers, way], rows[answers, ALL], len(bench.by_query)) for way in WAYS
            }
            print_table(f"{answers} answers, LLM {name}", results[f"{answers}: {name}"])
    if arguments.plot:
        draw_plot(results, arguments.plot)
    print(json.dumps(results))
    return 0


def print_table(title: str, rows: Mapping[str, Row]) -> None:
    """Print one line per way; each ratio with its range over seeds."""

    def ratio(row: Row, name: str, form: str) -> str:
        value, low, high = (format(row[f"{name}{part}"], form) for part in ("", "_low", "_high"))
        return f"{value} ({low} to {high})"

    for number, (way, row) in enumerate(rows.items()):
        cells = {
            "calls": f"{row['calls']:7.2f}",
            "times fewer": f"{ratio(row, 'fewer_calls', '.1f'):>22}",
            "useful": f"{row['useful']:7.0f}",
            "share": f"{ratio(row, 'useful_share', '.1%'):>25}",
            "calls per useful": f"{ratio(row, 'calls_per_useful', '.2f'):>24}",
            "grouped": f"{row['grouped']:8.1%}",
            "by first": f"{row['by_first']:9.0f}",
            "error": f"{row['audit_error']:6.1%}",
        }
        if not number:
            print(f"\n{title}\n{'':26}" + "".join(f"{head:>{len(cell)}}" for head, cell in cells.items()))
        print(f"{way:26}" + "".join(cells.values()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
