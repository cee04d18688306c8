"""Which passages a question is asked of, and which questions are shown as examples: by seed, the same everywhere."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pyrite.sources.base import Split
from pyrite.spec import SplitSpec
from pyrite.splitting import SPLITS, draw


class Place(NamedTuple):
    """Where a passage stands. ``topic`` may be empty; then its document stands for it."""

    passage_id: str
    split: Split
    topic: str
    document: str


def shares(count: int, split: SplitSpec) -> dict[Split, int]:
    """``count`` questions over train, val and test as ``split`` says (largest remainder); each has one if it can."""
    exact = {"train": split.train * count, "val": split.val * count, "test": split.test * count}
    given = {name: int(exact[name]) for name in SPLITS}
    for name in sorted(SPLITS, key=lambda name: (given[name] - exact[name], SPLITS.index(name))):
        given[name] += sum(given.values()) < count
    for name in SPLITS:
        if not given[name] and count >= len(SPLITS):
            given[max(SPLITS, key=lambda other: given[other])] -= 1
            given[name] = 1
    return given


def draw_passages(places: Iterable[Place], wanted: Mapping[Split, int], seed: int) -> list[Place]:
    """Draw so many passages of each split, fewer where there are fewer; train, val, test.

    Those of a split are spread: no topic has two before each has one, and within a topic no document has.
    """
    by_split: dict[Split, list[Place]] = defaultdict(list)
    for place in places:
        by_split[place.split].append(place)
    return [place for split in SPLITS for place in _spread(by_split[split], seed)[: wanted.get(split, 0)]]


def _spread(places: Iterable[Place], seed: int) -> list[Place]:
    topics: dict[str, dict[str, list[Place]]] = defaultdict(lambda: defaultdict(list))
    for place in places:
        topics[f"topic {place.topic}" if place.topic else f"document {place.document}"][place.document].append(place)
    ordered = []
    for name, documents in topics.items():
        in_topic = _dealt({d: sorted(of, key=lambda p: draw(seed, p.passage_id)) for d, of in documents.items()}, seed)
        ordered.append((name, in_topic))
    return _dealt(dict(ordered), seed)


def _dealt(groups: Mapping[str, Sequence[Place]], seed: int) -> list[Place]:
    """One of each group, then a second of each, and so on; in a round, the groups as the seed orders them."""
    order = {name: draw(seed, name) for name in groups}
    placed = [(number, order[name], place) for name, group in groups.items() for number, place in enumerate(group)]
    return [place for _, _, place in sorted(placed, key=lambda entry: entry[:2])]


def shots(pool: Sequence[str], count: int, seed: int, name: str) -> list[str]:
    """Draw ``count`` different places of ``pool``, or all where it has no more, for the prompt called ``name``."""
    chosen: dict[int, None] = {}
    attempt = 0
    while len(chosen) < min(count, len(pool)):
        chosen[int.from_bytes(draw(seed, f"{name}:{attempt}")[:8]) % len(pool)] = None
        attempt += 1
    return [pool[place] for place in chosen]


def request_seed(seed: int, name: str) -> int:
    """The sampling seed of one request, below 2**31: servers take no larger one."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4]) >> 1
