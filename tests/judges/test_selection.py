"""Which pairs are sent, and when a walk stops."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.judges.base import Judgment, Missing, Pair, StatelessJudge
from pyrite.judges.selection import select_candidates
from pyrite.judges.session import judge_all
from pyrite.spec import JudgeSpec, SampleSpec

RANKED = [(f"c{rank}", rank) for rank in range(1, 51)]


@given(
    window=st.none() | st.integers(2, 60),
    sample=st.none() | st.builds(SampleSpec, top=st.integers(1, 20), deeper=st.integers(0, 60)),
    seed=st.integers(0, 5),
)
def test_chosen_are_in_the_window_once_by_rank_and_the_same_again(
    window: int | None, sample: SampleSpec | None, seed: int
) -> None:
    spec = JudgeSpec(rank_window=window, sample=sample)
    chosen = select_candidates("q", RANKED, (), spec, seed)
    ranks = [dict(RANKED)[passage] for passage in chosen]
    assert ranks == sorted(set(ranks))
    assert select_candidates("q", RANKED, (), spec, seed) == chosen
    room = min(50, window or 50)
    assert all(rank <= room for rank in ranks)
    if sample is None:
        assert len(ranks) == room
    else:
        assert ranks[: min(sample.top, room)] == list(range(1, min(sample.top, room) + 1))
        assert len(ranks) == min(room, sample.top + sample.deeper)


def test_what_is_known_to_be_relevant_comes_first_whatever_its_rank() -> None:
    spec = JudgeSpec(rank_window=3, sample=SampleSpec(top=1, deeper=1))
    chosen = select_candidates("q", RANKED, {"c50", "c2", "not-retrieved"}, spec, 0)
    assert chosen[:2] == ["c2", "c50"]
    assert chosen[2:] == ["c1", "c3"]


def test_deeper_draws_decay_with_the_rank() -> None:
    spec = JudgeSpec(sample=SampleSpec(top=5, deeper=5, decay=0.1))
    drawn = Counter(passage for i in range(600) for passage in select_candidates(f"q{i}", RANKED, (), spec, 0)[5:])
    near = sum(drawn[f"c{rank}"] for rank in range(6, 16))
    far = sum(drawn[f"c{rank}"] for rank in range(41, 51))
    assert far > 0
    assert near > 5 * far


class Key(StatelessJudge):
    """Stands in for a judge, which has no patience of its own to test: grades by a table, or not at all."""

    fingerprint, shared = "key", False

    def __init__(self, grades: dict[Pair, int | None], in_flight: int = 3):
        self.grades, self.in_flight, self.requested = grades, in_flight, list[Pair]()
        self.now: Counter[str] = Counter()

    async def grade(self, pair: Pair) -> Judgment | Missing:
        self.requested.append(pair)
        self.now[pair.query_id] += 1
        assert self.now[pair.query_id] == 1, "a query's pairs go one after the other"
        assert self.now.total() <= self.in_flight
        await asyncio.sleep(0)
        self.now[pair.query_id] -= 1
        grade = self.grades[pair]
        return Missing(pair, "no", 1, "window") if grade is None else Judgment(pair, grade, None)


class Tally:
    def __init__(self) -> None:
        self.all: list[Pair] = []
        self.left: list[Pair] = []

    def judged(self, judgment: Judgment) -> None:
        self.all.append(judgment.pair)

    def missing(self, missing: Missing) -> None:
        self.all.append(missing.pair)

    def kept(self, pair: Pair) -> None:
        self.all.append(pair)

    def skipped(self, query_id: str, passage_ids: Sequence[str]) -> None:
        self.left += [Pair(query_id, passage) for passage in passage_ids]


@given(
    grades=st.lists(st.lists(st.sampled_from([1, 2, 3, 4, None]), max_size=12), max_size=8),
    patience=st.none() | st.integers(1, 4),
    held=st.sets(st.integers(0, 11)),
    first=st.integers(0, 3),
)
def test_every_pair_is_told_of_once_and_patience_stops_exactly(
    grades: list[list[int | None]], patience: int | None, held: set[int], first: int
) -> None:
    """A bug that it meets: low grades of what the data set knows wear out the patience, and no rank is judged."""
    table = {Pair(f"q{q}", f"c{c}"): grade for q, row in enumerate(grades) for c, grade in enumerate(row)}
    kept = {p: g for p, g in table.items() if g is not None and int(p.passage_id[1:]) in held}
    judge, tally = Key(table), Tally()
    walks = [(f"q{q}", [f"c{c}" for c in range(len(row))]) for q, row in enumerate(grades)]
    known = {f"q{q}": {f"c{c}" for c in range(first)} for q in range(len(grades))}
    asyncio.run(judge_all(iter(walks), judge, kept, patience, tally, known))
    assert sorted(tally.all + tally.left) == sorted(table)
    assert not set(judge.requested) & set(kept), "what is kept is never asked again"
    for q, row in enumerate(grades):
        below, walked = 0, 0
        for position, grade in enumerate(row):
            if patience is not None and below >= patience:
                break
            walked += 1
            if grade is not None and position >= first:
                below = 0 if grade >= 3 else below + 1
        assert sum(pair.query_id == f"q{q}" for pair in tally.all) == walked


def test_a_judge_that_holds_nothing_is_opened_as_itself_has_an_empty_account_and_hides_no_error() -> None:
    async def fail_inside(judge: Key) -> None:
        async with judge as opened:
            assert opened is judge
            assert opened.stats == {}
            raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(fail_inside(Key({})))
