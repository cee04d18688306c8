"""generate: generates one shard of questions with an LLM, first from passages, then from example questions.

The examples are training questions: those of the data set, and those that this shard has generated from passages.
Replies are saved as they arrive, so a killed shard resumes.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import starmap
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.errors import UserError
from pyrite.generation import prompt, sampling
from pyrite.generation.filters import clean, deduplicate, rejection_reason
from pyrite.generation.questions import GeneratedQuestion, to_tables
from pyrite.generation.sampling import SourcePassage
from pyrite.generation.session import GenerationSession
from pyrite.llm.pool import Pool
from pyrite.stages.answerable import OwnPassages
from pyrite.stages.context import StepContext
from pyrite.stages.flushing import run_with_flush
from pyrite.stages.inputs import read_passage_parts, read_passages_with, read_prepared

NO_REPLY = "the server sent no reply"
NO_EXAMPLES = "there is no training question to use as an example"

#: Maximum dropped questions in the summary for each reason.
_MAX_DROPPED_EXAMPLES = 3


def run(ctx: StepContext) -> dict[str, Any]:
    """Write queries/generated-<k>.parquet and queries/generated-qrels-<k>.parquet; return counts."""
    shard = _Shard(ctx)
    questions = asyncio.run(run_with_flush(shard.generate(), shard.flush))
    queries, qrels = to_tables(questions)
    tables.write(ctx.output(f"queries/generated-{shard.number:05d}.parquet"), queries, tables.QUERIES)
    tables.write(ctx.output(f"queries/generated-qrels-{shard.number:05d}.parquet"), qrels, tables.QRELS)
    shard.merge()
    return {
        "questions": len(questions),
        "from_passages": sum(bool(question.passage_ids) for question in questions),
        "splits": dict(sorted(Counter(question.split for question in questions).items())),
        **shard.session.stats,
        "dropped": dict(shard.dropped.most_common()),
        "dropped_examples": shard.dropped_examples,
        "generator": shard.fingerprint,
    }


class _Shard:
    """Generates the questions of one shard, and counts the dropped ones by reason."""

    def __init__(self, ctx: StepContext):
        assert ctx.spec.generate is not None
        assert ctx.step.shard is not None
        self._ctx, self._spec, self.number = ctx, ctx.spec.generate, ctx.step.shard
        queries, _ = read_prepared(ctx)
        self._existing: list[str] = queries["text"].to_pylist()
        self._examples: list[str] = queries.filter(pc.equal(queries["split"], "train"))["text"].to_pylist()
        self._prompt = prompt.load(self._spec.prompt)
        pool = Pool.open(ctx.spec.generator_servers, ctx.spec.generator_model)
        self.fingerprint = prompt.fingerprint(pool.model, self._prompt, self._spec.temperature)
        writer = f"{ctx.spec.name}/{self.number}"
        self.session = GenerationSession(pool, ctx.store, self.fingerprint, writer, ctx.progress)
        self._own_passages = OwnPassages(ctx)
        self.dropped: Counter[str] = Counter()
        self.dropped_examples: dict[str, list[str]] = {}

    async def generate(self) -> list[GeneratedQuestion]:
        """Generate and filter the questions.

        Raises:
            UserError: no question passes the filters.
            PyriteError: too many requests failed.
        """
        passages, numbers = self._plan()
        from_passages = self._deduplicate(self._existing, await self._from_passages(passages))
        self._examples += [question.text for question in from_passages if question.split == "train"]
        earlier = [*self._existing, *(question.text for question in from_passages)]
        questions = from_passages + self._deduplicate(earlier, await self._few_shot(numbers))
        if not questions and self.dropped:
            raise UserError(self._no_question_message())
        return questions

    def _plan(self) -> tuple[list[SourcePassage], list[int]]:
        """This shard's source passages, and the numbers of its few-shot questions.

        If the data set has queries of its own, all questions are for training: validation and test stay as they are.
        """
        spec, shards = self._spec, self._spec.shards
        count = round(spec.queries * spec.share_from_passages)
        counts = sampling.split_counts(count, self._ctx.spec.prepare.split)
        if self._existing:
            counts = {"train": count}
        passages = sampling.sample_passages(_source_passages(self._ctx, counts), counts, self._ctx.spec.data_seed)
        if len(passages) < count and self.number == 0:
            self._ctx.progress.message(
                f"only {len(passages):,} questions are generated from passages, not {count:,}: there is one per passage"
            )
        return passages[self.number :: shards], list(range(spec.queries - count))[self.number :: shards]

    async def _from_passages(self, passages: Sequence[SourcePassage]) -> list[GeneratedQuestion]:
        """The usable questions that are generated from one passage each."""
        ids = pa.array([passage.passage_id for passage in passages], pa.string())
        selected = read_passages_with(self._ctx, ids, tables.PASSAGES)
        rows = {row["passage_id"]: row for row in selected.to_pylist()}
        texts = dict(zip(selected["passage_id"].to_pylist(), tables.in_context(selected), strict=True))
        requests = [
            prompt.passage_request(self._prompt, self._spec, id, self._request_seed(id), texts[id])
            for id in ids.to_pylist()
        ]
        replies = await self.session.generate(requests, "questions from passages")
        questions = []
        for passage in passages:
            if text := self._usable(replies.get(passage.passage_id)):
                row, origin = rows[passage.passage_id], (passage.passage_id,)
                topic, type_ = (row["parents"][0][name] for name in ("topic", "type"))
                questions.append(GeneratedQuestion(text, passage.split, topic, type_, origin, origin, row["group"]))
        return await self._answerable(questions, selected)

    async def _few_shot(self, numbers: Sequence[int]) -> list[GeneratedQuestion]:
        """The usable questions that are generated from examples."""
        if not self._examples:
            for _ in numbers:
                self._drop(NO_EXAMPLES)
            return []
        requests = []
        for name in (f"few-shot-{number}" for number in numbers):
            examples = sampling.sample_examples(self._examples, self._spec.shots, self._ctx.spec.data_seed, name)
            requests.append(prompt.few_shot_request(self._prompt, self._spec, name, self._request_seed(name), examples))
        replies = await self.session.generate(requests, "questions from examples")
        texts = [(request.name, self._usable(replies.get(request.name))) for request in requests]
        return [GeneratedQuestion(text, "train", "", "", (), (name,)) for name, text in texts if text]

    async def _answerable(self, questions: list[GeneratedQuestion], passages: pa.Table) -> list[GeneratedQuestion]:
        """The questions that their own passage (in ``passages``) answers, according to the run's judge."""
        if self._spec.answerable_grade is None or not questions:
            return questions
        judge = self._ctx.spec.main_judge
        if not judge.spec.reads_text:
            if self.number == 0:
                self._ctx.progress.message(
                    f"{judge.section}.kind {judge.spec.kind} cannot grade generated questions: "
                    "generate.answerable_grade is ignored"
                )
            return questions
        reasons = await self._own_passages.grade(questions, passages)
        for question, reason in zip(questions, reasons, strict=True):
            if reason:
                self._drop(reason, question.text)
        return [question for question, reason in zip(questions, reasons, strict=True) if not reason]

    def _usable(self, reply: str | None) -> str | None:
        """The question in ``reply``. If it is unusable, None, and the reason is counted."""
        if reply is None:
            self._drop(NO_REPLY)
            return None
        question = clean(reply)
        if reason := rejection_reason(question, self._spec):
            self._drop(reason, question)
            return None
        return question

    def _deduplicate(self, existing: Sequence[str], questions: Sequence[GeneratedQuestion]) -> list[GeneratedQuestion]:
        unique, dropped = deduplicate(existing, questions)
        self.dropped.update(dropped)
        return unique

    def _drop(self, reason: str, question: str = "") -> None:
        self.dropped[reason] += 1
        examples = self.dropped_examples.setdefault(reason, [])
        if question and len(examples) < _MAX_DROPPED_EXAMPLES:
            examples.append(question[:200])

    def _no_question_message(self) -> str:
        reasons = "; ".join(
            f"{reason}: {times}"
            + (f", such as {examples[0]!r}" if (examples := self.dropped_examples.get(reason)) else "")
            for reason, times in self.dropped.most_common()
        )
        return (
            f"Shard {self.number} has no usable question ({reasons}). Change generate.model or generate.prompt, "
            "or relax the filter that drops the most. The replies are saved and will be used again. If the "
            f"server was at fault, delete {self._ctx.store}/generated/{self.fingerprint} to request new ones."
        )

    def _request_seed(self, name: str) -> int:
        return sampling.request_seed(self._ctx.spec.data_seed, name)

    async def flush(self) -> None:
        """Save the replies and grades received since the last flush."""
        await self.session.flush()
        await self._own_passages.flush()

    def merge(self) -> None:
        """Merge the saved replies and grades into one file each."""
        self.session.merge()
        self._own_passages.merge()


def _source_passages(ctx: StepContext, splits: Collection[str]) -> Iterator[SourcePassage]:
    """The passages of ``splits`` with their first topic and document, without boilerplate and near-duplicates."""
    columns = tables.subset(tables.PASSAGES, "passage_id", "split", "near_duplicate", "boilerplate", "parents")
    for part in read_passage_parts(ctx, columns):
        usable = pc.and_(pc.is_null(part["near_duplicate"]), pc.invert(part["boilerplate"]))
        used = part.filter(pc.and_(usable, pc.is_in(part["split"], pa.array(splits, pa.string()))))
        first = pc.list_element(used["parents"], 0)
        names = (
            used["passage_id"],
            used["split"],
            pc.struct_field(first, "topic"),
            pc.struct_field(first, "document_id"),
        )
        yield from starmap(SourcePassage, zip(*(each.to_pylist() for each in names), strict=True))
