"""The script that a user of sentence-transformers would write: mine hard negatives, then train with in-batch negatives.

Usage: python scripts/opponent.py RUN OUTPUT [--epochs 2] [--model FOLDER]

RUN is the folder of a run in a store, for example store/runs/medquad. The training questions, their relevant passages
and the passages in which negatives are mined are that run's, in context, so that the split and the answer key are
equal. Mining has the options that the documentation of ``mine_hard_negatives`` recommends (NV-Retriever's
TopK-PercPos), training has the arguments of the training overview. Writes the model to OUTPUT; the last line is JSON.

Equal to Pyrite's run: split, answer key, passages in context, mining among training passages, bf16 if the processor
has it, seed. Not equal, because a user would not change it: one pass over all (question, relevant passage) pairs, the
model's own maximum length and dropout, learning rate 2e-5, batch size 16, no validation, no retention set.
"""

import argparse
import json
import time
from pathlib import Path

import pyarrow.compute as pc
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from sentence_transformers.util import mine_hard_negatives

from pyrite import tables
from pyrite.embedding.models import base_folder, device_name, has_bf16


def training_pairs(run: Path) -> tuple[Dataset, list[str]]:
    """The (question, relevant passage) pairs of the training split, and the texts of the training passages."""
    passages = tables.read(run / "corpus/passages.parquet", tables.PASSAGES)
    # As Pyrite, without near-duplicates of held-out passages.
    passages = passages.filter(pc.and_(pc.equal(passages["split"], "train"), pc.is_null(passages["near_duplicate"])))
    text_of = dict(zip(passages["passage_id"].to_pylist(), tables.in_context(passages), strict=True))
    queries = tables.read(run / "queries/queries.parquet", tables.QUERIES)
    queries = queries.filter(pc.equal(queries["split"], "train"))
    query_of = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    qrels = tables.read(run / "queries/qrels.parquet", tables.QRELS).to_pylist()
    known = [(row["query_id"], row["passage_id"]) for row in qrels if row["query_id"] in query_of]
    pairs = [
        {"anchor": query_of[query], "positive": text_of[passage]} for query, passage in known if passage in text_of
    ]
    return Dataset.from_list(pairs), list(text_of.values())


def train(options: argparse.Namespace) -> dict[str, float]:
    """Mine and train. Returns the number of pairs and examples, and the seconds from loading to the saved model."""
    pairs, corpus = training_pairs(options.run)
    device = device_name("auto")
    bf16 = has_bf16(device)
    start = time.monotonic()
    model = SentenceTransformer(str(base_folder(options.model, None)), device=device)
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        examples = mine_hard_negatives(
            pairs,
            model,
            corpus=corpus,
            range_max=50,
            relative_margin=0.05,
            num_negatives=3,
            sampling_strategy="top",
            output_format="n-tuple",
            use_faiss=True,
        )
    mined = time.monotonic()
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(options.output / "checkpoints"),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=0.1,
        bf16=bf16,
        use_cpu=device == "cpu",
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        seed=options.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=examples, loss=loss).train()
    model.save_pretrained(str(options.output / "model"))
    end = time.monotonic()
    return {
        "pairs": len(pairs),
        "examples": len(examples),
        "seconds": round(end - start),
        "seconds_mining": round(mined - start),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--model", default="builtin:all-MiniLM-L6-v2", help="base model: folder, hub id or builtin:...")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(train(parser.parse_args())))


if __name__ == "__main__":
    main()
