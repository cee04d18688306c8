"""Distillation: the first layers of the base model, trained with and without a tuned model as teacher.

Usage: python scripts/bench_distill.py [DATA] [--layers 3] [--steps 40] [--seeds 2] [--retention BEIR]

DATA is a run file (default: the sample) or a MedQuAD archive. The teacher is the model that its run hands over. The
small model has the first ``--layers`` layers of the run's base model. All trainings of a seed have the same batches of
the examples that the run mined, the same number of steps and the same learning rate. They differ in the loss:

- direct: contrastive, as finetune.loss multiple-negatives.
- distilled: the mean cosine distance between the embeddings of the batch's texts under the small model and the teacher.
- both: direct, plus ``--weight`` times distilled.

No loss has rehearsal, which would hold the model near its base, here the cut model. --retention replaces the run file's
set, and is only scored; its change is relative to the complete base model. The change from direct has a 95% interval:
a bootstrap over test topics, of the means over seeds. Finished results are appended to
--results (default: out/bench-distill.jsonl), and a restart skips them. The last line is JSON.
"""

import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import bench_common as common
import numpy as np
import torch
from bench_common import CLUSTERS, METRICS, PER_QUERY, Results, Row, Run, TestSet
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import batch_to_device, pairwise_cos_sim
from torch import Tensor

from pyrite import tables
from pyrite.embedding import models
from pyrite.embedding.memory import CPU_TEXTS
from pyrite.training import batching
from pyrite.training.losses import embed

SAMPLE = common.EXAMPLES / "sample.yaml"
DIRECT, DISTILLED, BOTH = "direct", "distilled", "both"
BASE, TEACHER, SMALL = "base", "teacher", "small, untrained"
BATCH = 32
WARMUP = 0.1


class Examples:
    """The texts of the examples that a run mined, and batches of them without conflicts."""

    def __init__(self, run: Run):
        schema = tables.examples(run.spec.mine.num_negatives)
        files = sorted(run.folder.glob("iterations/*/examples.parquet"))
        self._rows = [row for file in files for row in tables.read(file, schema).to_pylist()]
        self.columns = ["anchor", "positive", *(f"negative_{n}" for n in range(1, run.spec.mine.num_negatives + 1))]

    def batches(self, seed: int) -> Iterator[list[list[str]]]:
        """Endless batches: the texts of each column. The rows are in another order in each pass."""
        rows = [
            batching.Row(
                row["query_id"],
                frozenset([row["positive_id"], *row["negative_ids"]]),
                frozenset(row["relevant_ids"]),
                "",
            )
            for row in self._rows
        ]
        rng = np.random.default_rng(seed)
        while True:
            for positions in batching.pack(rows, rng.permutation(len(rows)).tolist(), BATCH):
                if len(positions) > BATCH // 2:  # the last ones have few examples
                    yield [[self._rows[position][name] for position in positions] for name in self.columns]


class Distillation:
    """The trainings of small models from the run of one teacher."""

    def __init__(self, options: Namespace, results: Results, store: Path):
        self._options, self._results = options, results
        run_file, data = common.data_options(options.data)
        self.run = common.train(run_file, store, "teacher", [*data, *options.set])
        self._spec = self.run.spec
        self._base = models.base_folder(self._spec.model.base, self._spec.model.revision)
        self._device = models.device_name(self._spec.resources.device)
        self._test, self._examples = TestSet(self.run, options.retention), Examples(self.run)
        self._store = store
        names = ("layers", "steps", "learning_rate", "weight", "max_tokens")
        self._key = {**common.data_key(options), **{name: getattr(options, name) for name in names}}

    def row(self, name: str, seed: int) -> Row:
        """The test metrics of a model. Only trained ones depend on the seed."""
        seed = seed if name in (DIRECT, DISTILLED, BOTH) else 0
        return self._results.once({**self._key, "model": name, "seed": seed}, lambda: self._measure(name, seed))

    def _measure(self, name: str, seed: int) -> Row:
        if name == BASE:
            return self._test.score(self._base)
        if name == TEACHER:
            return {**self._test.score(self.run.folder / "model"), "chosen": self.run.report["chosen"]}
        if name == SMALL:
            return self._test.score(self._small)
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            self._train(name, seed).save_pretrained(folder, create_model_card=False, safe_serialization=True)
            seconds = round(time.monotonic() - start)
            return {**self._test.score(Path(folder)), "seconds": seconds}

    @cached_property
    def _small(self) -> Path:
        """A folder with the first layers of the base model, which must be a BERT."""
        folder = self._store / f"first-{self._options.layers}-layers"
        model = models.load(self._base, self._base, self._spec.model, "cpu", for_training=True)
        bert = model[0].auto_model
        bert.encoder.layer = bert.encoder.layer[: self._options.layers]
        bert.config.num_hidden_layers = len(bert.encoder.layer)
        model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
        return folder

    @cached_property
    def _teacher(self) -> SentenceTransformer:
        model = models.load(self.run.folder / "model", self._base, self._spec.model, self._device)
        models.limit_window(model, self._options.max_tokens)
        return model

    def _train(self, name: str, seed: int) -> SentenceTransformer:
        options = self._options
        torch.manual_seed(seed)
        model = models.load(self._small, self._base, self._spec.model, self._device, for_training=True)
        window = model.max_seq_length
        models.limit_window(model, options.max_tokens)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        contrastive = MultipleNegativesRankingLoss(model, scale=self._spec.finetune.scale).compute_loss_from_embeddings
        optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options.steps))
        batches = self._examples.batches(seed)
        for step in range(1, options.steps + 1):
            texts = next(batches)
            with torch.autocast(self._device, torch.bfloat16, enabled=models.has_bf16(self._device)):
                embeddings = embed(model, [self._tokens(model, column) for column in texts], CPU_TEXTS)
            loss = torch.zeros(())
            if name in (DIRECT, BOTH):
                loss = loss + contrastive(embeddings, None)
            if name in (DISTILLED, BOTH):
                loss = loss + (options.weight if name == BOTH else 1) * self._distance(embeddings, texts)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 10 == 0 or step == options.steps:
                print(f"{name}, seed {seed}: step {step} of {options.steps}, loss {loss.item():.3f}", file=sys.stderr)
        model.max_seq_length = window
        return model

    def _tokens(self, model: SentenceTransformer, texts: Sequence[str]) -> dict[str, Any]:
        return batch_to_device(model.preprocess(list(texts)), torch.device(self._device))

    def _distance(self, embeddings: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> Tensor:
        """Mean cosine distance to the teacher's embeddings of the same texts."""
        with torch.no_grad():
            expected = embed(self._teacher, [self._tokens(self._teacher, column) for column in texts], CPU_TEXTS)
        return 1 - pairwise_cos_sim(torch.cat(list(embeddings)), torch.cat(expected)).mean()


def _rate(step: int, steps: int) -> float:
    """The learning rate's factor: a linear rise, then a linear fall."""
    rise = max(1, round(WARMUP * steps))
    return (step + 1) / rise if step < rise else (steps - step) / (steps - rise + 1)


def changes(rows: Sequence[Row], direct: Sequence[Row], clusters: Mapping[str, str]) -> dict[str, Any]:
    """The relative change of each metric from ``direct``, of the means over seeds."""
    found = {}
    for metric in METRICS:
        base, other = (_mean_by_query([row[PER_QUERY][metric] for row in each]) for each in (direct, rows))
        found[metric] = common.relative_change(base, other, clusters)
    return found


def _mean_by_query(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {query: float(np.mean([each[query] for each in values])) for query in values[0]}


def main() -> int:
    parser = common.parser(__doc__, splits=False)
    parser.set_defaults(seeds=2, retention=Path("builtin:general"))
    parser.add_argument("data", type=Path, nargs="?", default=SAMPLE)
    parser.add_argument("--layers", type=int, default=3, help="layers of the small model")
    parser.add_argument("--steps", type=int, default=40, help="training steps of each small model")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--weight", type=float, default=10.0, help="weight of distilled in both")
    parser.add_argument("--max-tokens", type=int, default=128, help="maximum tokens of a text in training")
    options = parser.parse_args()
    if common.missing_file(options.data, options.retention):
        return 2
    path = options.results or common.ROOT / "out/bench-distill.jsonl"
    results = Results(path, Path(__file__).name, any_version=options.any_version)
    names = (BASE, TEACHER, SMALL, DIRECT, DISTILLED, BOTH)
    by_name: dict[str, list[Row]] = {name: [] for name in names}
    with common.store_folder(options.store) as store:
        distillation = Distillation(options, results, store)
        for seed in range(options.seeds):
            for name in names:
                by_name[name].append(distillation.row(name, seed))
            common.print_table(f"seed {seed}", {name: rows[seed] for name, rows in by_name.items()}, DIRECT)
        clusters = distillation.run.row("base")[CLUSTERS]
    summary = {name: common.mean_row(rows) for name, rows in by_name.items()}
    for name in (DISTILLED, BOTH):
        summary[name]["change"] = changes(by_name[name], by_name[DIRECT], clusters)
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
