"""Assigns groups of queries or passages to train, val and test."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from scipy.cluster.hierarchy import DisjointSet

from pyrite.sources.base import Split
from pyrite.spec import SplitSpec

SPLITS: tuple[Split, ...] = ("train", "val", "test")

#: A concept of more than this share of the topics joins none of them: it may be as general as "disease", and the joined
#: topics could not be divided into splits.
MAX_CONCEPT_SHARE = 0.1

#: A node of the graph whose connected components are the groups: ("topic" | "concept" | "passage" | "query", id).
Node = tuple[str, str]


class Group(NamedTuple):
    """A group of connected nodes: its name, the least id of its queries (or passages), and its split."""

    name: str
    split: Split


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


# --- groups of topics and passages


def group_documents(
    passages_of: Mapping[str, Sequence[str]],
    topic_of: Mapping[str, str],
    concepts_of: Mapping[str, Sequence[str]],
    notes: list[str],
) -> DisjointSet:
    """Topics, concepts and passages, connected if they share a document. Concepts of too many topics are left out.

    Args:
        passages_of, topic_of, concepts_of: the passages, the topic ("" if none) and the concepts of each document.
        notes: receives a note about the concepts left out.
    """
    groups = DisjointSet()
    general = _general_concepts(topic_of, concepts_of, notes)
    for document, keys in passages_of.items():
        topic = topic_of[document]
        concepts = [("concept", concept) for concept in concepts_of[document] if concept not in general]
        topics = [("topic", topic)] if topic else []
        connect(groups, [*topics, *concepts, *(("passage", key) for key in keys)])
    return groups


def _general_concepts(
    topic_of: Mapping[str, str], concepts_of: Mapping[str, Sequence[str]], notes: list[str]
) -> set[str]:
    """The concepts of more than ``MAX_CONCEPT_SHARE`` of the topics, at least of three. Adds a note if there are any.

    A document without a topic counts as a topic of its own.
    """
    topics_of: dict[str, set[str]] = defaultdict(set)
    for document, concepts in concepts_of.items():
        for concept in concepts:
            topics_of[concept].add(topic_of[document] or document)
    topics = {topic or document for document, topic in topic_of.items()}
    limit = max(2, MAX_CONCEPT_SHARE * len(topics))
    general = sorted(
        (concept for concept, found in topics_of.items() if len(found) > limit),
        key=lambda concept: (-len(topics_of[concept]), concept),
    )
    if general:
        notes.append(
            f"Concepts that join no topics, because each belongs to more than {MAX_CONCEPT_SHARE:.0%} of the "
            f"{len(topics):,} topics: {len(general):,}, such as {general[0]} with {len(topics_of[general[0]]):,}."
        )
    return set(general)


def connect(groups: DisjointSet, nodes: Sequence[Node]) -> None:
    for node in nodes:
        groups.add(node)
        groups.merge(nodes[0], node)


def divide(
    groups: DisjointSet, nodes: Mapping[Node, str], shares: SplitSpec, seed: int, notes: list[str]
) -> dict[Node, Group]:
    """Assign a split to each group that contains a node of ``nodes``. Returns the groups by their roots.

    A group's size is the number of its nodes in ``nodes``. Its name is their least id, so that the result does not
    depend on the source's order. If the largest group exceeds the share of val or test, a note is added.

    Args:
        nodes: the label of each node, for messages.
    """
    members: dict[Node, list[Node]] = defaultdict(list)
    for node in nodes:
        members[groups[node]].append(node)
    root_of = {min(group)[1]: root for root, group in members.items()}
    assigned = assign({name: len(members[root]) for name, root in root_of.items()}, shares, seed)
    name, largest = max(((name, members[root]) for name, root in root_of.items()), key=lambda g: (len(g[1]), g[0]))
    share = len(largest) / len(nodes)
    if share > min(shares.val, shares.test):
        unit = "queries" if largest[0][0] == "query" else "passages"
        notes.append(
            f"{len(largest):,} of {len(nodes):,} {unit} ({share:.0%}) are connected by shared questions, passages or "
            f"topics, such as '{nodes[largest[0]]}'; all of them are in {assigned[name]}."
        )
    return {root_of[name]: Group(name, split) for name, split in assigned.items()}


# --- near-duplicates between splits


def affected_queries(passages: pa.Table, queries: pa.Table, qrels: pa.Table) -> dict[str, set[str]]:
    """By split (val, test), the ids of the queries whose answer a model could have seen in training.

    Such a query has a relevant passage that is in the training split (possible if the data set assigns the splits), or
    that has a near-duplicate there. The near-duplicates are excluded from training.

    Args:
        passages, queries, qrels: PASSAGES, QUERIES and QRELS tables.
    """
    columns = (passages[name].to_pylist() for name in ("passage_id", "split", "near_duplicate"))
    seen = {key for key, split, duplicate in zip(*columns, strict=True) if split == "train" or duplicate is not None}
    pairs = zip(qrels["query_id"].to_pylist(), qrels["passage_id"].to_pylist(), strict=True)
    affected = {query for query, passage in pairs if passage in seen}
    splits = list(zip(queries["query_id"].to_pylist(), queries["split"].to_pylist(), strict=True))
    return {name: {key for key, split in splits if split == name and key in affected} for name in ("val", "test")}


def describe_near_duplicates(
    passages: pa.Table, queries: pa.Table, qrels: pa.Table, notes: list[str]
) -> dict[str, Any]:
    """Counts of near-duplicates between training and held-out data, and up to three pairs. Adds a note if any exist."""
    rows = {
        row["passage_id"]: row for row in passages.select(["passage_id", "text", "split", "near_duplicate"]).to_pylist()
    }
    train = [row for row in rows.values() if row["near_duplicate"] and row["split"] == "train"]
    affected = affected_queries(passages, queries, qrels)
    counts = {split: len(affected[split]) for split in ("val", "test")}
    examples = [
        {"train": row["text"][:120], "held_out": rows[row["near_duplicate"]]["text"][:120]} for row in train[:3]
    ]
    if train:
        notes.append(
            f"Training passages excluded as near-duplicates of held-out passages: {len(train):,}, "
            f"such as '{examples[0]['train'][:60]}'."
        )
    if any(counts.values()):
        notes.append(
            "Held-out queries with a relevant passage that is in the training split or has a near-duplicate there: "
            f"{counts['val']:,} in val, {counts['test']:,} in test."
        )
    held_out = sum(bool(row["near_duplicate"]) for row in rows.values()) - len(train)
    return {"train_passages": len(train), "held_out_passages": held_out, "queries": counts, "examples": examples}
