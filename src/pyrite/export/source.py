"""The model to export: the chosen model of a finished run, or a model folder."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.embedding.models import base_folder
from pyrite.errors import UserError
from pyrite.evaluation.clusters import by_group
from pyrite.executors.step import Run
from pyrite.export.parity import DEPTH, Statistics
from pyrite.export.texts import Corpus, limit, sample_corpus
from pyrite.spec import ModelSpec
from pyrite.stages.inputs import read_passage_ids, read_passages_with, read_qrels, read_queries


@dataclass(frozen=True)
class Source:
    """A model to export, and the corpus on which its exports are compared with it.

    Attributes:
        name: its name for the user.
        folder: the model folder.
        spec: the settings with which it is loaded.
        corpus: the queries and passages of a check.
        corpus_passages: the number of passages that ``corpus`` was drawn from.
        origin: describes the corpus, as a phrase.
        statistics: how intervals are computed.
    """

    name: str
    folder: Path
    spec: ModelSpec
    corpus: Corpus
    corpus_passages: int
    origin: str
    statistics: Statistics


def of_folder(name: str) -> Source:
    """The model folder ``name``: a folder, an S3 URL, a hub id, or the packaged model.

    Raises:
        UserError: there is no such model, or Pyrite cannot read it.
    """
    everything = sample_corpus()
    # Without the sample's grades: metrics on another field mean little, so only embeddings are compared.
    corpus = limit(Corpus(everything.queries, everything.passages), max_queries=300, max_passages=600)
    return Source(
        re.split("[/:]", str(Path(name).resolve()) if Path(name).is_dir() else name.rstrip("/"))[-1],
        base_folder(name, None, "MODEL"),
        ModelSpec(base=name),
        corpus,
        len(everything.passages),
        "the built-in sample",
        Statistics(),
    )


def of_run(run: Run) -> Source:
    """The chosen model of a finished run, with its test queries and a part of its passages in context.

    Raises:
        UserError: the run has not finished.
        PyriteError: an output of the run is missing or damaged.
    """
    name, context = run.spec.name, run.reading_context()
    if "evaluate" not in context.manifests:
        raise UserError(f"run {name} has no chosen model yet; `pyrite status {name}` shows its progress.")
    folder = context.input_folder("model")
    queries, qrels = read_queries(context, "test"), read_qrels(context)
    rankings = tables.read(context.input("report/rankings.parquet"), tables.RANKINGS)
    relevant: dict[str, dict[str, int]] = {}
    for query, passage, grade in zip(*(qrels[each].to_pylist() for each in qrels.column_names), strict=True):
        relevant.setdefault(query, {})[passage] = grade
    by_id = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    top = rankings.filter(pc.equal(rankings["model"], context.manifests["evaluate"]["summary"]["chosen"]))
    top = top.filter(pc.less_equal(top["rank"], DEPTH)).sort_by([("rank", "ascending"), ("query_id", "ascending")])
    # The part is chosen by ids, because all texts may not fit into memory.
    ids = read_passage_ids(context)["passage_id"].to_pylist()
    known = {query: relevant.get(query, {}) for query in by_id}
    part = limit(Corpus(by_id, dict.fromkeys(ids, ""), known, top["passage_id"].to_pylist()))
    passages = read_passages_with(context, pa.array(list(part.passages)))
    texts = dict(zip(passages["passage_id"].to_pylist(), tables.in_context(passages), strict=True))
    return Source(
        name,
        folder,
        run.spec.model,
        replace(part, passages={each: texts[each] for each in part.passages}),
        len(ids),
        "the run's test queries and a part of its passages",
        Statistics(run.spec.evaluate.resamples, run.spec.seed, by_group(queries)),
    )
