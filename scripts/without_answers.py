"""The command `pyrite`, in which retrieving and mining do not know the answers to training queries. For benchmarks.

Usage: python scripts/without_answers.py train RUN.yaml ...

It is a run on a data set without an answer key, except that the judge `labels` has one: known answers are not added to
the candidates or judged first, and mining neither prefers nor protects them. Validation and test use the key of their
own queries.

Steps run in child processes. They import this file too, as their parent's main module, and so replace the functions.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pyrite.cli import main
from pyrite.stages import embed, inputs, retrieve
from pyrite.stages.context import StepContext


def read_other_qrels(ctx: StepContext) -> pa.Table:
    """The known relevant passages of all queries except the training queries."""
    training = inputs.read_queries(ctx, "train")["query_id"].combine_chunks()
    qrels = inputs.read_qrels(ctx)
    return qrels.filter(pc.invert(pc.is_in(qrels["query_id"], training)))


for stage in (embed, retrieve):  # the pairs of retrieve mark the known answers for judging and mining
    stage.read_qrels = read_other_qrels  # type: ignore[attr-defined]

if __name__ == "__main__":
    main()
