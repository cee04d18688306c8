"""Scores smaller embeddings of a model on test: what they lose against float32 embeddings of all dimensions.

All forms are computed from the stored embeddings of the corpus, which are read in blocks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyrite.embedding.encoder import Encoder
from pyrite.embedding.search import Floats, Integers, read_blocks
from pyrite.embedding.smaller import BINARY, RESCORED, RESCORED_DEPTH, Form, forms, ranges_of, search_all
from pyrite.evaluation import scoring
from pyrite.evaluation.selection import SELECTION_METRICS
from pyrite.progress import Progress
from pyrite.stages.found import known_scores
from pyrite.stages.scoring import RANKED, Corpus, rankings

#: Maximum number of test queries, so that the time with a large test set is that of the other searches at most.
MAX_QUERIES = 2000

_METRICS = {name: scoring.METRICS[name] for name in SELECTION_METRICS}


def sample_queries(queries: pa.Table, seed: int) -> pa.Table:
    """At most ``MAX_QUERIES`` test queries, in order."""
    test = queries.filter(pc.equal(queries["split"], "test"))
    if test.num_rows <= MAX_QUERIES:
        return test
    drawn = np.random.default_rng(seed).choice(test.num_rows, MAX_QUERIES, replace=False)
    return test.take(np.sort(drawn))


def score_smaller(
    encoder: Encoder,
    model: str,
    corpus: Corpus,
    queries: pa.Table,
    qrels: pa.Table,
    listed: Sequence[int] | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    """SMALLER rows of ``model``.

    Args:
        queries: of ``sample_queries``.
        listed: numbers of dimensions to truncate to; None: powers of two.
    """
    files = encoder.corpus(corpus.texts, progress)
    vectors = encoder.encode(queries["text"].to_pylist(), "query")
    progress.begin(2 * len(corpus.ids), "embeddings read, for their ranges and to search their smaller forms")
    ranges = ranges_of(read_blocks(files, on_rows=progress.advance))
    searched = forms(ranges, listed, normalise=encoder.normalises)
    depth = min(RESCORED_DEPTH, len(corpus.ids))
    found = search_all(searched, vectors, read_blocks(files, on_rows=progress.advance), depth, encoder.device)
    float32, binary = searched[0], searched[-1]
    sizes = {form.name: _sizes(form) for form in searched}
    sizes[RESCORED] = _sizes(binary, rescored_bytes=float32.bytes)
    found[RESCORED] = _rescore(vectors, files, found[BINARY])
    qrels = qrels.filter(pc.is_in(qrels["query_id"], queries["query_id"].combine_chunks()))
    rows = []
    for name, positions in found.items():
        first = positions[:, :RANKED]
        ids = queries["query_id"].to_pylist(), corpus.ids
        ranked = rankings(ids, np.zeros(first.shape, np.float32), first)  # only ranks are used
        names = {"model": model, "embedding": name, **sizes[name]}
        rows += [{**names, **row} for row in scoring.per_query(ranked, qrels, _METRICS)]
    return rows


def _rescore(queries: Floats, files: list[Path], found: Integers) -> Integers:
    """The positions ``found``, shape (queries, k), in the order of their float32 scores."""
    rows = np.repeat(np.arange(len(found)), found.shape[1])
    scores = known_scores(queries, files, rows, found.ravel()).reshape(found.shape)
    return np.take_along_axis(found, np.argsort(-scores, axis=1, kind="stable"), axis=1)


def _sizes(form: Form, rescored_bytes: int = 0) -> dict[str, int]:
    return {"dims": form.dims, "bytes": form.bytes, "rescored_bytes": rescored_bytes}
