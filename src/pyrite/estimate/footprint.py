"""What one step of each stage needs: memory, disk and work, from the settings and the size of the data.

The coefficients are fitted to measured runs; ``scripts/bench_estimate.py`` compares the result with a run of 100,000
passages (docs/results.md). Sizes of files are those of Parquet with zstd and English text.
"""

from dataclasses import dataclass

from pyrite.costs import CHARACTERS_PER_TOKEN, pairs_per_query
from pyrite.embedding.memory import CPU_TEXTS, CPU_TOKENS, activation_bytes, training_bytes
from pyrite.embedding.models import Size
from pyrite.estimate.workload import Workload, pool_size
from pyrite.evaluation.selection import DEFAULT_BLENDS, SEARCH_STEPS
from pyrite.plan import Step
from pyrite.spec import RunSpec
from pyrite.stages.found import DEPTH
from pyrite.stages.scoring import RESCORED, RESCORED_BLOCK
from pyrite.stages.smaller import MAX_QUERIES

#: Memory of a step's process before it reads data. A pod of a stage without PyTorch has 300 MB less.
_PROCESS = 500e6

#: Further memory of a process that encodes or trains: PyTorch's buffers.
_TORCH = 250e6

#: What training in float32 stores on a CPU, relative to the formula for 16 bits.
_FLOAT32_ACTIVATIONS = 1.7

#: Bytes for the metrics of a query by a model.
_SCORES = 1000

#: Bytes per weight of a model in a file.
_SAVED = 4

#: A forward pass relative to a training step of the same texts, whose backward pass takes twice as long as its forward.
_FORWARD = 1 / 3

#: Searches in smaller embeddings, relative to one in complete embeddings, and the memory of their scores in bytes.
_FORMS, _SEARCHES = 4.5, 300e6

#: Characters per training step that pseudo-rehearsal adds: ``training.rehearsal.TEXTS`` texts, padded to up to
#: ``MAX_WORDS`` words of one token.
_REHEARSAL_CHARACTERS = 24 * 48 * CHARACTERS_PER_TOKEN


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a step needs.

    Attributes:
        memory: peak memory of its process in bytes.
        read: bytes of the files that it reads, which a pod has on its own disk.
        written: bytes that it writes: outputs, embeddings, and temporary files at their peak.
        stored: those of them that stay in the store.
        cpu: seconds on one core of an AMD EPYC with AVX-512 BF16, besides encoding, training and search.
        encoded: characters of passages that it encodes.
        encoded_float32: the same, in float32.
        trained: characters that it trains on.
        compared: pairs of a query's and a passage's embedding that it compares.
    """

    memory: float
    read: float
    written: float
    stored: float
    cpu: float = 0
    encoded: float = 0
    encoded_float32: float = 0
    trained: float = 0
    compared: float = 0

    @property
    def disk(self) -> float:
        """Bytes on the disk of a pod."""
        return self.read + self.written

    @property
    def uses_device(self) -> bool:
        """Whether a GPU makes the step faster."""
        return self.encoded + self.encoded_float32 + self.trained + self.compared > 0


class Footprint:
    """The needs of a run's steps."""

    def __init__(self, spec: RunSpec, work: Workload, model: Size, retention: float, reported: float):
        """``retention``, ``reported``: characters of the retention set, and of those that are only reported."""
        self._spec, self._work, self._model = spec, work, model
        self._retention, self._reported = retention, reported
        self._pairs = work.train * spec.retrieve.range_max
        self._judged = work.train * pairs_per_query(spec.judge, spec.retrieve.range_max, work.known)
        # Files.
        self._passages = 0.4 * work.characters + 60 * work.passages
        self._queries = 100 * work.queries
        self._found = 8 * (self._pairs + work.held_out * DEPTH)
        self._joined = self._pairs * (20 + 0.4 * work.passage_characters)
        self._judgments = (40 if spec.judge.needs_server else 7) * self._judged
        texts = work.passage_characters * (1 + spec.mine.num_negatives)
        self._examples = work.train * spec.mine.num_positives * (100 + 0.4 * texts)
        self._saved = _SAVED * model.weights
        self._embeddings = 4 * model.dims * work.passages
        self._encoding = _PROCESS + 1.7 * _TORCH + activation_bytes(model, CPU_TOKENS)

    def of(self, step: Step) -> Needs:
        """What ``step`` needs."""
        needs: Needs = getattr(self, f"_{step.stage}")(step.iteration or 0)
        return needs

    def _new_vectors(self, iteration: int) -> int:
        """1 if a model of the iteration embeds passages; 0 if those are the base model's, which are cached."""
        return int(iteration == 0 or self._spec.finetune.train == "both")

    def _prepare(self, _: int) -> Needs:
        work = self._work
        stored = self._passages + self._queries
        return Needs(
            memory=_PROCESS + 110e6 + 200 * work.passages,
            read=work.characters,
            written=stored + 2 * work.characters,
            stored=stored,
            cpu=work.characters / 6.4e6,
        )

    def _generate(self, _: int) -> Needs:
        stored = self._queries / (self._spec.generate.shards if self._spec.generate else 1)
        return Needs(memory=_PROCESS + 650 * self._work.passages, read=self._passages, written=stored, stored=stored)

    def _embed(self, iteration: int) -> Needs:
        work, shards = self._work, self._spec.retrieve.shards
        new = self._new_vectors(iteration)
        stored = new * self._embeddings / shards + self._found
        vectors = work.queries * 4 * self._model.dims
        return Needs(
            memory=self._encoding + 100 * work.passages + vectors + 40 * self._found / 8,
            read=self._passages + self._queries + self._saved,
            written=stored,
            stored=stored,
            encoded=new * work.characters / shards,
            compared=work.queries * work.passages / shards,
        )

    def _retrieve(self, _: int) -> Needs:
        stored = self._joined + 20 * self._pairs
        found = self._spec.retrieve.shards * self._found
        return Needs(
            memory=_PROCESS + 130e6 + 100 * self._work.passages + 40 * self._pairs,
            read=self._passages + self._queries + found,
            written=stored + self._work.characters,
            stored=stored,
            cpu=self._pairs * 14e-6,
        )

    def _judge(self, _: int) -> Needs:
        shards, labels = self._spec.judge.shards, not self._spec.judge.needs_server
        return Needs(
            memory=_PROCESS + 60e6 + (100 * self._work.passages if labels else 0),
            read=self._joined / shards + (self._passages if labels else 0),
            written=2 * self._judgments / shards,
            stored=self._judgments / shards,
            cpu=self._judged * (28e-6 if labels else 400e-6) / shards,
        )

    def _mine(self, _: int) -> Needs:
        return Needs(
            memory=_PROCESS + 80e6 + 300 * self._work.train,
            read=self._joined + self._judgments,
            written=self._examples + 7000 * self._work.train,
            stored=self._examples,
            cpu=self._pairs * 13e-6,
        )

    def _finetune(self, iteration: int) -> Needs:
        spec, work = self._spec.finetune, self._work
        limits = (limit for limit in (spec.max_tokens, self._spec.model.max_tokens) if limit)
        tokens = min(512, *limits, work.passage_characters / CHARACTERS_PER_TOKEN)
        texts = CPU_TEXTS * (2 + self._spec.mine.num_negatives)
        activations = _FLOAT32_ACTIVATIONS * activation_bytes(self._model, texts * tokens)
        more = 1 + 0.5 * (iteration - 1) if self._spec.mine.accumulate else 1
        return Needs(
            # With several GPUs, each process has its own model and ids.
            memory=spec.gpus * (_PROCESS + _TORCH + training_bytes(self._model, 0) + activations + 1300 * work.train),
            read=self._examples + self._saved,
            written=6 * self._saved + 2 * self._examples,
            stored=self._saved,
            trained=self._trained() * more,
        )

    def _trained(self) -> float:
        """Characters that an iteration trains on, without examples of earlier iterations.

        A forward pass of the base model counts as ``_FORWARD`` of them. With ``finetune.train: query``, passages have
        only that pass, and queries are too short to count.
        """
        spec, work, settings = self._spec, self._work, self._spec.finetune
        per_example = min(spec.prepare.max_chars, work.passage_characters) * (1 + spec.mine.num_negatives)
        if settings.train == "query":
            per_example *= _FORWARD
        elif settings.anchor:
            per_example *= 1 + _FORWARD
        per_step = settings.batch_size * per_example
        if settings.rehearsal:
            per_step += _REHEARSAL_CHARACTERS * (1 + _FORWARD)
        examples = work.train * spec.mine.num_positives + min(spec.mine.title_pairs, work.passages)
        return examples * settings.epochs / settings.batch_size * per_step * settings.soup_size

    def _validate(self, iteration: int) -> Needs:
        # Upper bounds. Within the retention limit, an iteration has the default blends. Otherwise the search scores
        # SEARCH_STEPS blends on the retention set, and at most one of them on validation.
        spec, work = self._spec.evaluate, self._work
        blends = len(DEFAULT_BLENDS if spec.blends is None else spec.blends) if iteration else 0
        models = 1 + (SEARCH_STEPS if spec.searches_blend and iteration else blends)
        pool = 1.0 if spec.judge else min(1.0, work.held_out / 2 * DEPTH / max(1, work.passages))
        new = self._new_vectors(iteration)
        embeddings = new * blends * pool * self._embeddings
        return Needs(
            memory=(self._encoding if models > 1 or self._retention else _PROCESS)
            + (_TORCH if blends else 0)
            + 100 * work.passages
            + _SCORES * work.held_out / 2 * (1 + blends),
            read=self._passages + self._queries + 2 * self._found + 2 * self._saved,
            written=embeddings + (1 + blends) * self._saved,
            stored=embeddings,
            encoded=new * blends * pool * work.characters + models * self._retention,
        )

    def _assess(self, _: int) -> Needs:
        pool = self._work.held_out * pool_size(self._work, self._spec.iterations)
        texts = 2 * min(pool, self._work.passages) * self._work.passage_characters
        return Needs(memory=_PROCESS + texts + 200 * pool, read=self._passages, written=2 * 40 * pool, stored=40 * pool)

    def _evaluate(self, _: int) -> Needs:
        work, new = self._work, self._new_vectors(1)
        models = 2 + self._spec.iterations
        # Base without context; with new vectors also a chosen blend, and the chosen model without context.
        encodings = 1 + 2 * new
        rescored = min(1.0, work.held_out / 2 * RESCORED / max(1, work.passages))
        # Smaller embeddings of the base model and the chosen model, from their stored embeddings.
        smaller = (1 + new) * int(self._spec.evaluate.smaller)
        compared = encodings * work.held_out / 2 + smaller * _FORMS * min(MAX_QUERIES, work.held_out / 2)
        stored = encodings * self._embeddings + self._saved
        return Needs(
            memory=self._encoding
            # The same model in float32, and the texts and vectors that it scores at a time.
            + _TORCH
            + 2 * self._saved
            + RESCORED_BLOCK * (2 * work.passage_characters + 8 * self._model.dims)
            + 100 * work.passages
            + _SCORES * work.held_out / 2 * models
            + bool(smaller) * _SEARCHES,
            read=self._passages + self._queries + models * (self._saved + self._found) + smaller * self._embeddings,
            written=stored,
            stored=stored,
            encoded=encodings * work.characters + models * self._reported,
            encoded_float32=(2 + models) * rescored * work.characters,
            compared=compared * work.passages,
            cpu=smaller * 40e-6 * work.passages,
        )
