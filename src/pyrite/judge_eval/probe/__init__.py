"""Probe: judges a sample of a run's pairs, to decide whether the judge is good enough."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import __version__
from pyrite.executors.step import Run
from pyrite.judge_eval.common import TimedSession, judge_summary, prepared_context
from pyrite.judge_eval.probe import findings
from pyrite.judge_eval.probe.sampling import (
    SampledPair,
    draw_queries,
    judgments_to_show,
    sample_query,
    similar_passages,
)
from pyrite.judges import Pair, open_judge
from pyrite.judges.cache import open_cache
from pyrite.judges.labels import LabelsJudge
from pyrite.plan import probe_key
from pyrite.progress import Progress
from pyrite.stages.context import StepContext
from pyrite.stages.inputs import encoder, passages_by_query, read_passages, read_qrels, read_queries
from pyrite.stages.retrieve import retrieve
from pyrite.training.mining import duplicate_check, shingles_by_id


def probe(run: Run, queries: int, candidates: int, progress: Progress) -> dict[str, Any]:
    """Judge ``candidates`` passages of each of ``queries`` training queries, and decide go or no-go.

    The base model retrieves the candidates, as in the run's first iteration. The run reuses its cached embeddings.

    Returns:
        The content of probe.json.

    Raises:
        UserError: the run is not prepared, or the judge's settings or server are wrong, and a retry cannot help.
        PyriteError: the judge grades nothing, or leaves too many pairs ungraded.
    """
    ctx = prepared_context(run, progress)
    passages, qrels, all_queries = read_passages(ctx), read_qrels(ctx), read_queries(ctx)
    relevant = passages_by_query(qrels)
    # Opened first, so that wrong settings fail before the corpus is encoded.
    judge = open_judge(run.spec.main_judge, all_queries, passages, qrels)
    train = all_queries.filter(pc.equal(all_queries["split"], "train"))
    drawn = draw_queries(train["query_id"].to_pylist(), queries, run.spec.seed)
    text_of = dict(zip(passages["passage_id"].to_pylist(), passages["text"].to_pylist(), strict=True))
    is_duplicate = duplicate_check(shingles_by_id(passages))
    labels = LabelsJudge.of(all_queries, passages, qrels)
    drawn_queries = train.filter(pc.is_in(train["query_id"], pa.array(drawn)))
    sample = _sample(ctx, passages, drawn_queries, qrels, relevant, labels, is_duplicate, candidates)
    cache = open_cache(run.store, judge, f"{run.spec.name}/probe")
    session = TimedSession(judge, cache, [each.pair for each in sample], run.spec.judge.max_missing, progress)
    session.run()

    judgments = {judgment.pair: judgment for judgment in session.judgments}
    context_of = dict(zip(passages["passage_id"].to_pylist(), passages["context"].to_pylist(), strict=True))
    query_of = dict(zip(train["query_id"].to_pylist(), train["text"].to_pylist(), strict=True))

    def texts(pair: Pair) -> Mapping[str, str]:
        query_id, passage_id = pair
        return {"query": query_of[query_id], "passage": text_of[passage_id], "title": context_of[passage_id]}

    by_query = findings.graded_candidates(sample, judgments, relevant, run.spec.judge.rank_window)
    content: dict[str, Any] = {
        "pyrite": __version__,
        "run": run.spec.name,
        "key": probe_key(run.spec),
        "domain": run.spec.domain,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "judge": judge_summary(run.spec.main_judge.spec, judge),
        "base_model": run.spec.model.base,
        "rule": run.spec.mine.rule,
        "queries": len(drawn),
        "candidates": candidates,
        "range_max": run.spec.retrieve.range_max,
        "servers": len(run.spec.resources.judge_urls),
        **findings.speed(session),
        "answered": findings.answered(session),
        "grades": findings.histogram(sample, judgments),
        "information_bits": round(findings.information(session.judgments), 4),
        "hard": findings.hard_examples(by_query, relevant, run.spec.mine, is_duplicate),
        "known_above_random": findings.known_above("random", sample, judgments),
        "known_above_similar": findings.known_above("similar", sample, judgments),
        "samples": judgments_to_show(sample, judgments, relevant, texts, run.spec.seed),
    }
    checks = findings.checks(content, run.spec.judge.max_missing)
    return content | {
        "checks": [asdict(check) for check in checks],
        "go": findings.go(checks),
        "verdict": findings.verdict(checks),
    }


def _sample(
    ctx: StepContext,
    passages: pa.Table,
    queries: pa.Table,
    qrels: pa.Table,
    relevant: Mapping[str, set[str]],
    labels: LabelsJudge,
    is_duplicate: Callable[[str, str], bool],
    candidates: int,
) -> list[SampledPair]:
    """The pairs to judge, grouped by query.

    Args:
        labels: the judge of the data set's labels, for the topics of similar passages.
    """
    trained = passages.filter(pc.equal(passages["split"], "train"))["passage_id"].to_pylist()
    in_training = set(trained)
    ranked: dict[str, dict[str, tuple[int, float]]] = defaultdict(dict)
    pairs = retrieve(encoder(ctx, 0), ctx, queries, qrels)
    for row in pairs.candidates(pairs.rows_by_id()).to_pylist():
        ranked[row["query_id"]][row["passage_id"]] = (row["rank"], row["score"])

    def similar(query: str) -> list[str]:
        others = (
            passage
            for passage in ranked[query]
            if not any(passage == known or is_duplicate(passage, known) for known in relevant[query])
        )
        grades = {passage: labels.true_grade(Pair(query, passage)) for passage in others}
        return similar_passages(query, grades, ctx.spec.seed)

    return [
        each
        for query in sorted(ranked)
        for each in sample_query(
            query,
            ranked[query],
            sorted(relevant[query] & in_training),
            similar(query),
            trained,
            candidates,
            ctx.spec.judge.rank_window,
            ctx.spec.seed,
        )
    ]
