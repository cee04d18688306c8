"""Assigns groups of queries or passages to train, val and test."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from pyrite.identity import Keys
from pyrite.ragged import Numbers
from pyrite.sources.base import Split
from pyrite.spec import SplitSpec

SPLITS: tuple[Split, ...] = ("train", "val", "test")

#: A concept of more than this share of the topics joins none of them: it may be as general as "disease", and the joined
#: topics could not be divided into splits.
MAX_CONCEPT_SHARE = 0.1

#: Edges of a graph: the kind and the numbers of their first nodes, and of their second nodes.
Edges = tuple[int, Numbers, int, Numbers]


def draw(seed: int, key: str) -> bytes:
    """A pseudo-random sort key that depends on ``seed`` and ``key`` alone."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def assign(names: pa.StringArray, sizes: Numbers, shares: SplitSpec, seed: int) -> npt.NDArray[np.int8]:
    """Assign each group a split, as a position in ``SPLITS``, so that the splits' sizes are close to ``shares``.

    A group larger than half of the smaller of val and test goes to train, because one topic would dominate the
    metrics. If fewer than two other groups remain, the smallest of the large groups are used for val and test too.
    With three groups or more, no split is empty.
    """
    # 8 bytes of the key are enough to sort by: those of two groups are never equal.
    draws = (int.from_bytes(draw(seed, name.as_py())[:8], "big") for name in names)
    order = np.argsort(np.fromiter(draws, np.uint64, len(names)))
    total = int(sizes.sum())
    remaining = [shares.train * total, shares.val * total, shares.test * total]
    limit = max(1.0, min(remaining[1:]) / 2)
    is_large = sizes[order] > limit
    large = order[is_large]
    large = large[np.argsort(-sizes[large], kind="stable")].tolist()
    rest = order[~is_large]
    more: list[int] = []
    while large and len(rest) + len(more) < 2 and len(order) > 2:
        more.append(large.pop())
    rest = np.concatenate([rest, np.array(more, rest.dtype)])
    assigned = np.zeros(len(names), np.int8)

    def put(group: int, split: int) -> None:
        assigned[group] = split
        remaining[split] -= int(sizes[group])

    for group in large:
        put(group, 0)
    first = [1, 2] if large else [0, 1, 2]
    for group, split in zip(rest, first, strict=False):
        put(group, split)
    for group in rest[len(first) :]:
        put(group, max(range(len(SPLITS)), key=remaining.__getitem__))
    return assigned


# --- groups of topics and passages


def connect(sizes: Sequence[int], edges: Iterable[Edges]) -> list[Numbers]:
    """The connected components of a graph whose nodes are of several kinds, such as topics and passages.

    Args:
        sizes: the number of nodes of each kind.

    Returns:
        For each kind, the component of each of its nodes.
    """
    offsets = np.cumsum([0, *sizes])
    ends = [(first + offsets[a], second + offsets[b]) for a, first, b, second in edges]
    rows, columns = (
        np.concatenate([np.empty(0, np.int32), *side]).astype(np.int32) for side in zip(*ends, strict=True)
    )
    graph = scipy.sparse.coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(offsets[-1], offsets[-1]))
    _, components = scipy.sparse.csgraph.connected_components(graph, directed=False)
    return np.split(components, offsets[1:-1])


def unique_pairs(first: Numbers, second: Numbers) -> tuple[Numbers, Numbers]:
    """The distinct pairs of ``first`` and ``second``, in order."""
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    new = np.append(True, (first[1:] != first[:-1]) | (second[1:] != second[:-1]))[: len(first)]
    return first[new], second[new]


def general_concepts(documents: Numbers, concepts: Numbers, topics: Numbers) -> Numbers:
    """For each concept, the number of its topics if it has more than ``MAX_CONCEPT_SHARE`` of them, otherwise 0.

    Such a concept has at least three topics.

    Args:
        documents, concepts: pairs of a document and a concept of it, as numbers from 0.
        topics: for each document, the number of its topic. A document without a topic counts as a topic of its own.
    """
    counts = np.bincount(unique_pairs(concepts, topics[documents])[0])
    counts[counts <= max(2, MAX_CONCEPT_SHARE * len(np.unique(topics)))] = 0
    return counts


def describe_general_concepts(number: int, name: str, topics: int, of: int) -> str:
    """The note about ``number`` general concepts. ``name`` has the most topics: ``topics`` out of ``of``."""
    return (
        f"Concepts that join no topics, because each belongs to more than {MAX_CONCEPT_SHARE:.0%} of the {of:,} "
        f"topics: {number:,}, such as {name} with {topics:,}."
    )


@dataclass(frozen=True)
class Groups:
    """The groups of some nodes that share a split.

    Attributes:
        components: the component of each group, in ascending order.
        names: for each group, the least id of its nodes.
        splits: for each group, a position in ``SPLITS``.
    """

    components: Numbers
    names: pa.StringArray
    splits: npt.NDArray[np.int8]

    def find(self, components: Numbers) -> Numbers:
        """The number of the group of each component, -1 if it contains none of the nodes."""
        found = np.searchsorted(self.components, components).clip(max=len(self.components) - 1)
        found[self.components[found] != components] = -1
        return found


def divide(
    components: Numbers,
    keys: Keys,
    format_ids: Callable[[Keys], pa.StringArray],
    label_of: Callable[[int], str],
    unit: str,
    shares: SplitSpec,
    seed: int,
    notes: list[str],
) -> Groups:
    """Assign a split to each group, the nodes of one component.

    A group's size is the number of its nodes. Its name is their least id, so that the result does not depend on the
    source's order. If the largest group exceeds the share of val or test, a note is added.

    Args:
        components: the component of each node.
        keys, format_ids: the id of each node as a number, and a function that returns the ids.
        label_of, unit: the label of a node by its number, and the plural of what a node is, for messages.
    """
    found, first, group_of = np.unique(components, return_index=True, return_inverse=True)
    sizes = np.bincount(group_of)
    least = np.full(len(found), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, group_of, keys)
    names = format_ids(least)
    splits = assign(names, sizes, shares, seed)
    largest = np.lexsort((least, sizes))[-1]
    share = int(sizes[largest]) / len(keys)
    if share > min(shares.val, shares.test):
        notes.append(
            f"{sizes[largest]:,} of {len(keys):,} {unit} ({share:.0%}) are connected by shared questions, passages or "
            f"topics, such as '{label_of(int(first[largest]))}'; all of them are in {SPLITS[splits[largest]]}."
        )
    return Groups(found, names, splits)


# --- near-duplicates between splits


def affected_queries(passages: pa.Table, queries: pa.Table, qrels: pa.Table) -> dict[str, set[str]]:
    """By split (val, test), the ids of the queries whose answer a model could have seen in training.

    Such a query has a relevant passage that is in the training split (possible if the data set assigns the splits), or
    that has a near-duplicate there. The near-duplicates are excluded from training.

    Args:
        passages: PASSAGE_IDS.
        queries, qrels: QUERIES and QRELS tables.
    """
    seen = pc.or_kleene(pc.equal(passages["split"], "train"), pc.is_valid(passages["near_duplicate"]))
    held_out = queries.filter(pc.not_equal(queries["split"], "train"))
    pairs = qrels.filter(pc.is_in(qrels["query_id"], held_out["query_id"].combine_chunks()))
    is_answer = pc.is_in(passages["passage_id"], pairs["passage_id"].combine_chunks())
    answers = passages["passage_id"].filter(pc.and_(seen, is_answer))
    affected = pairs.filter(pc.is_in(pairs["passage_id"], answers.combine_chunks()))["query_id"].combine_chunks()
    found = held_out.filter(pc.is_in(held_out["query_id"], affected))
    return {name: set(found.filter(pc.equal(found["split"], name))["query_id"].to_pylist()) for name in ("val", "test")}


def describe_near_duplicates(
    train: int, held_out: int, queries: dict[str, int], examples: list[dict[str, str]], notes: list[str]
) -> dict[str, Any]:
    """The part of prepare's summary about near-duplicates between training and held-out data. Adds notes if any exist.

    Args:
        train, held_out: the number of passages on each side that have a near-duplicate on the other one.
        queries: by split (val, test), the number of ``affected_queries``.
        examples: up to three pairs of passages.
    """
    if train:
        notes.append(
            f"Training passages excluded as near-duplicates of held-out passages: {train:,}, "
            f"such as '{examples[0]['train'][:60]}'."
        )
    if any(queries.values()):
        notes.append(
            "Held-out queries with a relevant passage that is in the training split or has a near-duplicate there: "
            f"{queries['val']:,} in val, {queries['test']:,} in test."
        )
    return {"train_passages": train, "held_out_passages": held_out, "queries": queries, "examples": examples}
