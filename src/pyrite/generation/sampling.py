"""Samples source passages and example questions by seed."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pyrite.sources.base import Split
from pyrite.spec import SplitSpec
from pyrite.splitting import SPLITS, draw


class SourcePassage(NamedTuple):
    """A passage from which a question may be generated. If ``topic`` is empty, the document counts as its topic."""

    passage_id: str
    split: Split
    topic: str
    document: str


def split_counts(count: int, split: SplitSpec) -> dict[Split, int]:
    """Distribute ``count`` questions over the splits by largest remainder. From 3 on, each split gets at least one."""
    exact = {"train": split.train * count, "val": split.val * count, "test": split.test * count}
    counts = {name: int(exact[name]) for name in SPLITS}
    for name in sorted(SPLITS, key=lambda name: (counts[name] - exact[name], SPLITS.index(name))):
        counts[name] += sum(counts.values()) < count
    for name in SPLITS:
        if not counts[name] and count >= len(SPLITS):
            counts[max(SPLITS, key=lambda other: counts[other])] -= 1
            counts[name] = 1
    return counts


def sample_passages(passages: Iterable[SourcePassage], counts: Mapping[Split, int], seed: int) -> list[SourcePassage]:
    """Sample ``counts`` passages of each split, or all if there are fewer. Order: train, val, test.

    Topics take turns within a split, and documents take turns within a topic.
    """
    by_split: dict[Split, list[SourcePassage]] = defaultdict(list)
    for passage in passages:
        by_split[passage.split].append(passage)
    return [passage for split in SPLITS for passage in _shuffle(by_split[split], seed)[: counts.get(split, 0)]]


def _shuffle(passages: Iterable[SourcePassage], seed: int) -> list[SourcePassage]:
    topics: dict[str, dict[str, list[SourcePassage]]] = defaultdict(lambda: defaultdict(list))
    for passage in sorted(passages, key=lambda passage: draw(seed, passage.passage_id)):
        topic = f"topic {passage.topic}" if passage.topic else f"document {passage.document}"
        topics[topic][passage.document].append(passage)
    return _round_robin({topic: _round_robin(documents, seed) for topic, documents in topics.items()}, seed)


def _round_robin(groups: Mapping[str, Sequence[SourcePassage]], seed: int) -> list[SourcePassage]:
    """The first passage of each group, then the second of each, and so on; groups are in random order."""
    order = {name: draw(seed, name) for name in groups}
    turns = [(turn, order[name], passage) for name, group in groups.items() for turn, passage in enumerate(group)]
    return [passage for _, _, passage in sorted(turns, key=lambda entry: entry[:2])]


def sample_examples(questions: Sequence[str], count: int, seed: int, request: str) -> list[str]:
    """Sample ``count`` different ``questions``, or all if there are fewer, for the request named ``request``."""
    positions: dict[int, None] = {}
    attempt = 0
    while len(positions) < min(count, len(questions)):
        positions[int.from_bytes(draw(seed, f"{request}:{attempt}")[:8]) % len(questions)] = None
        attempt += 1
    return [questions[position] for position in positions]


def request_seed(seed: int, request: str) -> int:
    """The seed to send with one request. It is below 2**31, the limit of some servers."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{request}".encode()).digest()[:4]) >> 1
