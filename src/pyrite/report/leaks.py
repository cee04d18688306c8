"""What held-out queries share with training data: which checks were made, and the results without affected queries."""

from collections.abc import Collection
from typing import Any

import numpy as np

from pyrite.evaluation.selection import BASE
from pyrite.report.queries import PerQuery

_NEAR_DUPLICATES = (
    "near-duplicate passages (the longer has 80% of the shorter one's 5-word shingles; texts under 14 words must also "
    "be about as long, and under 5 words equal)"
)


def without(affected: Collection[str], test: PerQuery) -> dict[str, Any] | None:
    """Means over the test queries that are not ``affected``, by model and metric, and their relative changes.

    Returns:
        ``affected`` and ``queries`` (the numbers left out and left), ``means``, and ``changes`` from the base model
        (None if the base model's mean is 0). Without means and changes if all test queries are affected. None if no
        test query is affected.
    """
    ids = set(test[BASE]["mrr@5"])
    left = sorted(ids.difference(affected))
    if len(left) == len(ids):
        return None
    if not left:
        return {"affected": len(ids), "queries": 0, "means": {}, "changes": {}}
    means = {
        model: {metric: float(np.mean([values[query] for query in left])) for metric, values in metrics.items()}
        for model, metrics in test.items()
    }
    changes = {
        model: {metric: mean / means[BASE][metric] - 1 if means[BASE][metric] else None for metric, mean in own.items()}
        for model, own in means.items()
        if model != BASE
    }
    return {"affected": len(ids) - len(left), "queries": len(left), "means": means, "changes": changes}


def checks(splits_given: bool, title_pairs: int) -> str:
    """What was checked between training and held-out data, and what was not.

    Args:
        title_pairs: number of title-passage pairs in training, of all iterations.
    """
    return f"{_checks(splits_given)} {about_title_pairs(title_pairs)}".rstrip()


def about_title_pairs(number: int) -> str:
    """What training saw of held-out topics because of mine.title_pairs; empty without such pairs."""
    if not number:
        return ""
    return (
        f"Training also saw {number:,} title-passage pairs of the complete corpus, held-out topics included. Titles "
        "that repeat a held-out question, apart from stop words and plurals, were left out; paraphrases were not."
    )


def _checks(splits_given: bool) -> str:
    if splits_given:
        return (
            f"The data set assigns the splits. Checked between training and held-out data: equal questions, and "
            f"{_NEAR_DUPLICATES}. Not checked: topics, paraphrases."
        )
    return (
        "Checked between training and held-out data: equal questions, equal passages, topics, concepts (if the data "
        f"has them), and {_NEAR_DUPLICATES}. Not checked: paraphrases."
    )
