"""Assigns groups of queries or passages to train, val and test."""

import hashlib
from collections.abc import Mapping

from pyrite.sources.base import Split
from pyrite.spec import SplitSpec

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def draw(seed: int, key: str) -> bytes:
    """A pseudo-random sort key that depends on ``seed`` and ``key`` alone."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def assign(sizes: Mapping[str, int], shares: SplitSpec, seed: int) -> dict[str, Split]:
    """Assign each group (name to size) a split, so that the splits' sizes are close to ``shares``.

    A group larger than half of the smaller of val and test goes to train, because one topic would dominate the
    metrics. If fewer than two other groups remain, the smallest of the large groups are used for val and test too.
    With three groups or more, no split is empty.
    """
    order = sorted(sizes, key=lambda name: draw(seed, name))
    total = sum(sizes.values())
    remaining: dict[Split, float] = {
        "train": shares.train * total,
        "val": shares.val * total,
        "test": shares.test * total,
    }
    limit = max(1.0, min(remaining["val"], remaining["test"]) / 2)
    large = sorted((name for name in order if sizes[name] > limit), key=lambda name: sizes[name], reverse=True)
    rest = [name for name in order if sizes[name] <= limit]
    while large and len(rest) < 2 and len(order) > 2:
        rest.append(large.pop())
    assigned: dict[str, Split] = {}

    def put(name: str, split: Split) -> None:
        assigned[name] = split
        remaining[split] -= sizes[name]

    for name in large:
        put(name, "train")
    first = [split for split in SPLITS if not (large and split == "train")]
    for name, split in zip(rest, first, strict=False):
        put(name, split)
    for name in rest[len(first) :]:
        put(name, max(SPLITS, key=lambda split: remaining[split]))
    return assigned
