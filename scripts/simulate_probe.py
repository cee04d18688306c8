"""Simulate judges that err, and count how often `pyrite probe` accepts them.

Usage: python scripts/simulate_probe.py RUN_FOLDER [--queries 30] [--repeats 500]

RUN_FOLDER: runs/<run> in a local store, after `pyrite retrieve -i 1`, of a data set with topics.

A repeat draws training queries, and errors by the model of judge.noise, whose scale fits the wanted kappa on the
candidates of iteration 1. The probe's own functions sample the pairs and compute the two AUCs. unlabelled: the share of
similar passages that the judge takes for answers because they are, although the data set does not label them.
of_topics: the judge takes each passage of the query's topic for an answer, and also errs. topics: if false, similar
passages are sampled as if the data set had no topics.

Each line of the output is a judge, the share of repeats in which it passes each check, and the mean AUCs.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from pyrite import tables
from pyrite.judge_eval.probe.findings import MIN_AUC, known_above
from pyrite.judge_eval.probe.sampling import ON_TOPIC, SampledPair, draw_queries, sample_query, similar_passages
from pyrite.judges.base import Judgment, Pair
from pyrite.judges.labels import LabelsJudge
from pyrite.judges.noise import BaseScores, error_of, soft_grade, solve_scale
from pyrite.stages.inputs import passages_by_query
from pyrite.training.mining import duplicate_check, shingles_by_id

CANDIDATES, RANGE_MAX = 10, 50


class SimulatedJudge(NamedTuple):
    """``kappa`` 1: no errors. ``probabilities``: whether it returns them; otherwise the grade alone."""

    kappa: float
    similarity: float = 0.0
    probabilities: bool = True
    of_topics: bool = False
    unlabelled: float = 0.0
    topics: bool = True


JUDGES = [
    *(SimulatedJudge(kappa, similarity) for kappa in (0.7, 0.5, 0.3) for similarity in (0.0, 0.5)),
    SimulatedJudge(0.5, probabilities=False),
    *(SimulatedJudge(kappa, of_topics=True, topics=topics) for kappa in (1, 0.5) for topics in (True, False)),
    *(SimulatedJudge(0.5, similarity, topics=False) for similarity in (0.0, 0.5)),
    *(SimulatedJudge(kappa, unlabelled=share) for kappa in (1, 0.5) for share in (0.1, 0.2, 0.3, 0.4)),
]


class Simulation:
    """The data of one run, and the samples that probe takes from it."""

    def __init__(self, folder: Path):
        schemas = {
            "corpus/passages": tables.PASSAGES,
            "queries/queries": tables.QUERIES,
            "queries/qrels": tables.QRELS,
            "iterations/1/candidates": tables.CANDIDATES,
        }
        read = [tables.read(folder / f"{name}.parquet", schema) for name, schema in schemas.items()]
        passages, queries, qrels, candidates = read
        self.key = LabelsJudge.of(queries, passages, qrels)
        self.relevant = passages_by_query(qrels)
        self.scores = BaseScores(candidates, RANGE_MAX, candidates["query_id"].unique().to_pylist())
        self.trained = passages.filter(pc.equal(passages["split"], "train"))["passage_id"].to_pylist()
        self._is_duplicate = duplicate_check(shingles_by_id(passages))
        self.ranked: dict[str, dict[str, tuple[int, float]]] = {}
        for row in candidates.to_pylist():
            self.ranked.setdefault(row["query_id"], {})[row["passage_id"]] = (row["rank"], row["score"])
        fitted = [Pair(query, id) for query in draw_queries(sorted(self.ranked), 500, 0) for id in self.ranked[query]]
        self.truth = np.array([self.key.true_grade(pair) for pair in fitted], dtype=np.int64)
        self.fitted = fitted

    @lru_cache(None)  # noqa: B019  # one object
    def sample(self, query: str, topics: bool) -> list[SampledPair]:
        known = self.relevant[query]
        others = [
            p for p in self.ranked[query] if p not in known and not any(self._is_duplicate(p, each) for each in known)
        ]
        grades = {p: self.key.true_grade(Pair(query, p)) if topics else 1 for p in others}
        similar = similar_passages(query, grades, 0)
        labelled = sorted(known & set(self.trained))
        return sample_query(query, self.ranked[query], labelled, similar, self.trained, CANDIDATES, None, 0)

    def scale(self, judge: SimulatedJudge) -> float:
        errors = np.array([error_of(pair, 0, judge.similarity, self.scores.of(pair)) for pair in self.fitted])
        return solve_scale(self.truth, errors, 0.0, judge.kappa) if judge.kappa < 1 else 0.0

    def judgments(
        self, sample: list[SampledPair], judge: SimulatedJudge, scale: float, seed: int
    ) -> Mapping[Pair, Judgment]:
        random, found = Random(seed), {}
        for each in sample:
            truth = self.key.true_grade(each.pair)
            if judge.of_topics:
                truth = 4 if truth >= ON_TOPIC else 1
            elif "similar" in each.parts and random.random() < judge.unlabelled:
                truth = 4
            error = error_of(each.pair, seed, judge.similarity, self.scores.of(each.pair))
            grade, distribution = soft_grade(truth + scale * error)
            found[each.pair] = Judgment(each.pair, grade, distribution if judge.probabilities else None)
        return found

    def passes(self, judge: SimulatedJudge, queries: int, repeats: int) -> dict[str, float]:
        """The share of repeats in which the judge passes, and the mean AUC, of both checks."""
        scale, found = self.scale(judge), []
        for seed in range(1, repeats + 1):
            sample = [
                pair for q in draw_queries(sorted(self.ranked), queries, seed) for pair in self.sample(q, judge.topics)
            ]
            judgments = self.judgments(sample, judge, scale, seed)
            both = [known_above(part, sample, judgments) for part in ("random", "similar")]
            found.append([value for each in both for value in (each["low"] > MIN_AUC, each["auc"])])
        means = np.mean(found, axis=0)
        return dict(zip(("random", "auc random", "similar", "auc similar"), means.round(3).tolist(), strict=True))


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=500)
    options = parser.parse_args()
    simulation = Simulation(options.folder)
    for judge in JUDGES:
        print(judge._asdict(), simulation.passes(judge, options.queries, options.repeats), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
