"""Groups of questions that share nothing, and their shares of train, val and test."""

import hashlib
from collections.abc import Hashable, Iterable, Mapping

from pyrite.sources.base import Split
from pyrite.spec import SplitSpec

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Groups:
    """Disjoint sets of things that were joined, directly or by way of others."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def find(self, item: Hashable) -> Hashable:
        """The thing that stands for ``item``'s group."""
        self._parent.setdefault(item, item)
        root = item
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[item] != root:
            self._parent[item], item = root, self._parent[item]
        return root

    def join(self, items: Iterable[Hashable]) -> None:
        """Put all of ``items`` into one group, that of the first."""
        first: Hashable | None = None
        for item in items:
            if first is None:
                first = self.find(item)
            else:
                self._parent[self.find(item)] = first


def draw(seed: int, key: str) -> bytes:
    """A value to sort by that looks random and depends on ``seed`` and ``key`` alone."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def assign(sizes: Mapping[str, int], shares: SplitSpec, seed: int) -> dict[str, Split]:
    """Give each group (name to its number of queries) a split, as near to ``shares`` of queries as can be.

    A group of more than half of what the smaller of val and test should hold goes to train: one topic would
    rule the measure. If fewer than two groups are left, the smallest of the large ones are used all the same.
    Each of the three splits has a group where there are three.
    """
    order = sorted(sizes, key=lambda name: draw(seed, name))
    total = sum(sizes.values())
    missing: dict[Split, float] = {"train": shares.train, "val": shares.val, "test": shares.test}
    missing = {split: share * total for split, share in missing.items()}
    limit = max(1.0, min(missing["val"], missing["test"]) / 2)
    large = sorted((name for name in order if sizes[name] > limit), key=lambda name: sizes[name], reverse=True)
    rest = [name for name in order if sizes[name] <= limit]
    while large and len(rest) < 2 and len(order) > 2:
        rest.append(large.pop())
    given: dict[str, Split] = {}

    def put(name: str, split: Split) -> None:
        given[name] = split
        missing[split] -= sizes[name]

    for name in large:
        put(name, "train")
    first = [split for split in SPLITS if not (large and split == "train")]
    for name, split in zip(rest, first, strict=False):
        put(name, split)
    for name in rest[len(first) :]:
        put(name, max(SPLITS, key=lambda split: missing[split]))
    return given
