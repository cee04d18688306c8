"""generate: an LLM makes questions, one shard of them. Some from a passage each, the others after examples.

What the LLM answers is kept as it comes, so a killed shard goes on from there. Examples are questions of the training
split, the data set's own and those that this shard has made from passages: so those are all made first.
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyrite import tables
from pyrite.errors import UserError
from pyrite.generation import prompt, sampling
from pyrite.generation.dedup import deduplicate
from pyrite.generation.filters import clean, refusal
from pyrite.generation.questions import GeneratedQuestion, to_tables
from pyrite.generation.reply_cache import ReplyCache
from pyrite.generation.sampling import Place
from pyrite.llm.pool import Pool
from pyrite.stages.answerable import OwnPassages
from pyrite.stages.context import StepContext
from pyrite.stages.flushing import run_with_flush
from pyrite.stages.inputs import read_passages, read_prepared
from pyrite.stages.replies import Replies

NO_ANSWER = "the server gave no answer"
NO_EXAMPLES = "there was no training question to show as an example"

_SHOWN = 3


def run(ctx: StepContext) -> dict[str, Any]:
    """Write queries/generated-<k>.parquet and queries/generated-qrels-<k>.parquet; return counts."""
    shard = _Shard(ctx)
    made = asyncio.run(run_with_flush(shard.make(), shard.flush))
    queries, qrels = to_tables(made)
    tables.write(ctx.output(f"queries/generated-{shard.number:05d}.parquet"), queries, tables.QUERIES)
    tables.write(ctx.output(f"queries/generated-qrels-{shard.number:05d}.parquet"), qrels, tables.QRELS)
    shard.merge()
    return {
        "questions": len(made),
        "from_passages": sum(bool(question.passage_ids) for question in made),
        "splits": dict(sorted(Counter(question.split for question in made).items())),
        **shard.replies.counts,
        "dropped": dict(shard.dropped.most_common()),
        "dropped_examples": shard.examples,
        "generator": shard.fingerprint,
    }


class _Shard:
    """The work on one shard: what it asks, and what it drops and why."""

    def __init__(self, ctx: StepContext):
        assert ctx.spec.generate is not None
        assert ctx.step.shard is not None
        self._ctx, self._spec, self.number = ctx, ctx.spec.generate, ctx.step.shard
        own, _ = read_prepared(ctx)
        self._passages = read_passages(ctx)
        self._existing: list[str] = own["text"].to_pylist()
        self._shown: list[str] = own.filter(pc.equal(own["split"], "train"))["text"].to_pylist()
        self._prompt = prompt.load(self._spec.prompt)
        pool, attempt = Pool.from_spec(ctx.spec, ctx.spec.generator_model), uuid.uuid4().hex[:12]
        self.fingerprint = prompt.fingerprint(pool.model, self._prompt, self._spec.temperature)
        kept = ReplyCache(ctx.store, self.fingerprint, f"{ctx.spec.name}/{self.number}", attempt)
        self.replies = Replies(ctx, pool, kept)
        self._own_passages = OwnPassages(ctx, self._passages, attempt)
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    async def make(self) -> list[GeneratedQuestion]:
        """Ask, filter, and return what is left.

        Raises:
            UserError: nothing is left.
            PyriteError: too many requests stayed without an answer.
        """
        places, numbers = self._plan()
        from_passages = self._deduplicate(self._existing, await self._from_passages(places))
        self._shown += [question.text for question in from_passages if question.split == "train"]
        before = [*self._existing, *(question.text for question in from_passages)]
        made = from_passages + self._deduplicate(before, await self._after_examples(numbers))
        if not made and self.dropped:
            raise UserError(self._nothing_left())
        return made

    def _plan(self) -> tuple[list[Place], list[int]]:
        """The passages that this shard asks about, and the numbers of its questions after examples.

        Where the data set has questions of its own, its validation and test stay as they are: all is for training.
        """
        spec, shards = self._spec, self._spec.shards
        count = round(spec.queries * spec.share_from_passages)
        wanted = sampling.shares(count, self._ctx.spec.prepare.split)
        if self._existing:
            wanted = {"train": count}
        drawn = sampling.draw_passages(_places(self._passages), wanted, self._ctx.spec.seed)
        if len(drawn) < count and self.number == 0:
            self._ctx.progress.message(
                f"{count:,} questions from passages were to be made, one each, but only {len(drawn):,} can be drawn"
            )
        return drawn[self.number :: shards], list(range(spec.queries - count))[self.number :: shards]

    async def _from_passages(self, places: Sequence[Place]) -> list[GeneratedQuestion]:
        """Questions made from the passages at ``places``, those that can be used."""
        ids = pa.array([place.passage_id for place in places], pa.string())
        rows = self._passages.filter(pc.is_in(self._passages["passage_id"], ids)).to_pylist()
        passages = {row["passage_id"]: row for row in rows}
        requests = [
            prompt.about_passage(
                self._prompt, self._spec, id, self._seed(id), passages[id]["title"], passages[id]["text"]
            )
            for id in ids.to_pylist()
        ]
        answers = await self.replies.ask(requests, "questions from passages")
        made = []
        for place in places:
            if question := self._usable(answers.get(place.passage_id)):
                parent, one = passages[place.passage_id]["parents"][0], (place.passage_id,)
                made.append(GeneratedQuestion(question, place.split, parent["topic"], parent["type"], one, one))
        return await self._answerable(made)

    async def _after_examples(self, numbers: Sequence[int]) -> list[GeneratedQuestion]:
        """Questions made after examples, those that can be used."""
        if not self._shown:
            for _ in numbers:
                self._drop(NO_EXAMPLES)
            return []
        requests = []
        for name in (f"few-shot-{number}" for number in numbers):
            shots = sampling.shots(self._shown, self._spec.shots, self._ctx.spec.seed, name)
            requests.append(prompt.like(self._prompt, self._spec, name, self._seed(name), shots))
        answers = await self.replies.ask(requests, "questions after examples")
        found = [(request.name, self._usable(answers.get(request.name))) for request in requests]
        return [GeneratedQuestion(question, "train", "", "", (), (name,)) for name, question in found if question]

    async def _answerable(self, made: list[GeneratedQuestion]) -> list[GeneratedQuestion]:
        """Those of ``made`` whose own passage the run's judge grades high enough."""
        if self._spec.answerable_grade is None or not made:
            return made
        if not self._ctx.spec.judge.reads_text:
            if self.number == 0:
                self._ctx.progress.message(
                    f"judge.kind {self._ctx.spec.judge.kind} cannot grade new questions; the judge drops none"
                )
            return made
        reasons = await self._own_passages.grade(made)
        for question, reason in zip(made, reasons, strict=True):
            if reason:
                self._drop(reason, question.text)
        return [question for question, reason in zip(made, reasons, strict=True) if not reason]

    def _usable(self, reply: str | None) -> str | None:
        """The question in ``reply``; None where there is none that can be used, and then it is counted why."""
        if reply is None:
            self._drop(NO_ANSWER)
            return None
        question = clean(reply)
        if reason := refusal(question, self._spec):
            self._drop(reason, question)
            return None
        return question

    def _deduplicate(self, existing: Sequence[str], made: Sequence[GeneratedQuestion]) -> list[GeneratedQuestion]:
        kept, dropped = deduplicate(existing, made)
        self.dropped.update(dropped)
        return kept

    def _drop(self, reason: str, example: str = "") -> None:
        self.dropped[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if example and len(shown) < _SHOWN:
            shown.append(example[:200])

    def _nothing_left(self) -> str:
        reasons = "; ".join(
            f"{reason}: {times}" + (f", such as {shown[0]!r}" if (shown := self.examples.get(reason)) else "")
            for reason, times in self.dropped.most_common()
        )
        return (
            f"no question is left of shard {self.number} ({reasons}). Look at what the model answers: set "
            "generate.model or generate.prompt to another, or loosen the filter that drops the most. Its answers are "
            f"kept; where the server was at fault, delete {self._ctx.store}/generated/{self.fingerprint} to ask again."
        )

    def _seed(self, name: str) -> int:
        return sampling.request_seed(self._ctx.spec.seed, name)

    async def flush(self) -> None:
        """Keep what was answered since the last time."""
        await self.replies.flush()
        await self._own_passages.flush()

    def merge(self) -> None:
        """Make one part of what was kept."""
        self.replies.merge()
        self._own_passages.merge()


def _places(passages: pa.Table) -> list[Place]:
    """Where each passage stands first."""
    columns = (passages[name].to_pylist() for name in ("passage_id", "split", "parents"))
    return [
        Place(passage, split, parents[0]["topic"], parents[0]["document_id"])
        for passage, split, parents in zip(*columns, strict=True)
    ]
