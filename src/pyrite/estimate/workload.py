"""The size of a run's data: from its prepared tables, its source, or numbers that the user gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyrite.executors.step import Run
from pyrite.generation.sampling import split_counts
from pyrite.identity import passage_id
from pyrite.plan import survey
from pyrite.sources import open_source
from pyrite.sources.base import Document, Question
from pyrite.spec import RunSpec

#: Known relevant passages of a query, if only numbers are given: those of MedQuAD (NIDDK and NINDS).
_KNOWN = 2.0

#: Passages in the pool of a query that evaluate.judge grades: of the base model, and added by each iteration with its
#: blends. Measured: 16.1 with one iteration, 19.8 with two and a blend (MedQuAD, 287 test queries).
_POOLED, _POOLED_PER_ITERATION = 10, 6

#: Mean length of a passage relative to prepare.max_chars.
_LENGTH = 0.8


@dataclass(frozen=True)
class Workload:
    """Size of a run's data.

    Attributes:
        characters: of all passages together.
        train: number of training queries.
        held_out: number of validation and test queries.
        known: mean number of known relevant passages per query.
        has_questions: whether the source has questions.
        to_generate: number of training queries not generated yet, before filters drop some. ``train`` includes them.
    """

    passages: float
    characters: float
    train: float
    held_out: float
    known: float
    has_questions: bool
    to_generate: float = 0

    @property
    def passage_characters(self) -> float:
        """Mean characters per passage."""
        return self.characters / max(1, self.passages)

    @property
    def queries(self) -> float:
        """The number of queries of all splits."""
        return self.train + self.held_out


def read_workload(run: Run, manifests: Mapping[str, Mapping[str, Any]]) -> Workload:
    """The workload of a run, from its prepared tables, or from its source if it is not prepared.

    Raises:
        UserError: the source cannot be read.
    """
    work = _prepared(manifests["prepare"]) if "prepare" in manifests else _of_source(run.spec)
    if not run.spec.generate:
        return work
    states = survey(run.spec, manifests, run.external)
    done = [state.step.name for state in states if state.step.stage == "generate" and state.state == "done"]
    summaries = [manifests[name]["summary"]["splits"] for name in done]
    return _with_generated(run.spec, work, summaries)


def workload_of(spec: RunSpec, passages: int, queries: int) -> Workload:
    """The workload of a source with this many passages and training queries, in addition to generated ones."""
    split = spec.prepare.split
    held_out = queries * (split.val + split.test) / split.train
    train = min(queries, spec.prepare.max_train_queries or queries)
    work = Workload(passages, passages * _LENGTH * spec.prepare.max_chars, train, held_out, _KNOWN, queries > 0)
    return _with_generated(spec, work, ()) if spec.generate else work


def pool_size(work: Workload, iterations: int) -> float:
    """The number of passages that evaluate.judge grades for a query."""
    return min(work.passages, _POOLED + _POOLED_PER_ITERATION * iterations)


def from_passages(spec: RunSpec, work: Workload) -> dict[str, int]:
    """Number of questions to generate from passages, by split: at most one per passage."""
    assert spec.generate is not None
    count, split = spec.generate.queries - few_shot(spec), spec.prepare.split
    requested = {"train": count} if work.has_questions else split_counts(count, split)
    available = {"train": split.train, "val": split.val, "test": split.test}
    return {name: min(many, round(available[name] * work.passages)) for name, many in requested.items()}


def few_shot(spec: RunSpec) -> int:
    """Number of questions to generate from examples, without a passage."""
    assert spec.generate is not None
    return spec.generate.queries - round(spec.generate.queries * spec.generate.share_from_passages)


def _with_generated(spec: RunSpec, work: Workload, done: Sequence[Mapping[str, int]]) -> Workload:
    """``work`` with generated questions. ``done``: those of each finished shard, by split."""
    assert spec.generate is not None
    planned = from_passages(spec, work)
    total = max(1, planned["train"] + few_shot(spec))
    left = total * (1 - len(done) / spec.generate.shards)
    found = sum(splits.get("train", 0) for splits in done)
    train = work.train + found + left
    known = work.train * work.known + (found + left) * planned["train"] / total  # one for each question from a passage
    held_out = work.held_out + sum(planned.get(split, 0) for split in ("val", "test")) * left / total
    held_out += sum(splits.get(split, 0) for splits in done for split in ("val", "test"))
    return replace(work, train=train, held_out=held_out, known=known / max(1, train), to_generate=left)


def _prepared(manifest: Mapping[str, Any]) -> Workload:
    """The workload of the tables that prepare wrote."""
    summary = manifest["summary"]
    queries = summary["queries"]
    qrels = next(each["rows"] for each in manifest["outputs"] if each["key"] == "queries/qrels.parquet")
    known = qrels / max(1, sum(queries.values()))
    distinct = summary["passages"] / (summary["passages"] + summary["merged_passages"])
    characters = summary["characters"] * distinct
    held_out = sum(queries.values()) - queries["train"]
    return Workload(summary["passages"], characters, queries["train"], held_out, known, any(queries.values()))


def _of_source(spec: RunSpec) -> Workload:
    characters = questions = passages = relevant = 0
    seen = set[str]()
    for record in open_source(spec.source).records():
        if isinstance(record, Document):
            if (text := passage_id(record.text)) in seen:
                continue
            seen.add(text)
            characters += len(record.text)
            passages += max(1, round(len(record.text) / (_LENGTH * spec.prepare.max_chars)))
        elif isinstance(record, Question):
            questions += 1
            relevant += len(record.relevant)
    known = relevant / max(1, questions) * passages / max(1, len(seen))
    train = questions * spec.prepare.split.train
    capped = min(train, spec.prepare.max_train_queries or train)
    return Workload(passages, characters, capped, questions - train, known, questions > 0)
