"""A judging session: which pairs are judged, in what order, and when judging of a query stops."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.errors import PyriteError, UserError
from pyrite.judges import Judge, Judgment, Missing, Pair
from pyrite.judges.cache import open_cache
from pyrite.judges.session import Block, JudgingSession
from pyrite.progress import NullProgress
from pyrite.store import open_store


class TableJudge(Judge):
    """Grades by a table; None is a missing pair. Checks that a query's pairs are sequential."""

    fingerprint = "table"

    def __init__(self, grades: dict[Pair, int | None], in_flight: int = 3):
        self.grades, self.in_flight, self.requested = grades, in_flight, list[Pair]()
        self.current: Counter[str] = Counter()

    async def grade(self, pair: Pair) -> Judgment | Missing:
        self.requested.append(pair)
        self.current[pair.query_id] += 1
        assert self.current[pair.query_id] == 1, "a query's pairs are judged sequentially"
        assert self.current.total() <= self.in_flight
        await asyncio.sleep(0)
        self.current[pair.query_id] -= 1
        grade = self.grades[pair]
        return Missing(pair, "no", 1, "window") if grade is None else Judgment(pair, grade, None)


class ShareableTableJudge(TableJudge):
    shareable = True


class RecordingSession(JudgingSession):
    """Also records every pair by its outcome."""

    def __init__(self, judge: Judge, total: int, **settings: int | None):
        super().__init__(judge, None, total, 1.0, NullProgress(), **settings)  # type: ignore[arg-type]
        self.judged = list[Pair]()

    def on_judged(self, judgment: Judgment) -> None:
        self.judged.append(judgment.pair)
        super().on_judged(judgment)


@given(
    grades=st.lists(st.lists(st.sampled_from([1, 2, 3, 4, None]), max_size=12), max_size=8),
    patience=st.none() | st.integers(1, 4),
    known=st.integers(0, 3),
)
def test_every_pair_has_one_outcome_and_patience_is_exact(
    grades: list[list[int | None]], patience: int | None, known: int
) -> None:
    """Regression: low grades of known passages counted towards patience, so no ranked candidate was judged."""
    table = {Pair(f"q{q}", f"c{c}"): grade for q, row in enumerate(grades) for c, grade in enumerate(row)}
    judge = TableJudge(table)
    session = RecordingSession(judge, len(table), patience=patience)
    queries = [(f"q{q}", [f"c{c}" for c in range(len(row))]) for q, row in enumerate(grades)]
    known_passages = {query: {f"c{c}" for c in range(known)} for query, _ in queries}
    block = asyncio.run(session.judge_all(queries, known_passages))
    skipped = [Pair(query, id) for query, ids in queries for id in ids[len(ids) - block.skipped.get(query, 0) :]]
    missing = [each.pair for each in session.missing]
    assert sorted(session.judged + missing + skipped) == sorted(table)
    assert sorted(judge.requested) == sorted(session.judged + missing)
    assert [(row["query_id"], row["passage_id"]) for row in session.results(block).to_pylist()] == [
        pair for pair in table if pair in session.judged
    ]
    for q, row in enumerate(grades):
        irrelevant, expected = 0, 0
        for position, grade in enumerate(row):
            if patience is not None and irrelevant >= patience:
                break
            expected += 1
            if grade is not None and position >= known:
                irrelevant = 0 if grade >= 3 else irrelevant + 1
        assert sum(pair.query_id == f"q{q}" for pair in judge.requested) == expected


@pytest.mark.parametrize("patience", [None, 2])
def test_cached_pairs_count_towards_patience(tmp_path: Path, patience: int | None) -> None:
    grades: dict[Pair, int | None] = {Pair("q", f"c{n}"): grade for n, grade in enumerate([4, 1, 1, 1])}
    queries = [("q", [pair.passage_id for pair in grades])]
    requested = []
    for number, count in enumerate((3, 4)):
        judge = ShareableTableJudge(grades)
        cache = open_cache(open_store(str(tmp_path)), judge, f"run/{number}")
        session = JudgingSession(judge, cache, 4, 0.0, NullProgress(), patience=patience)
        asyncio.run(session.load_cached({"q"}))
        first = [("q", queries[0][1][:count])]
        block = asyncio.run(session.judge_all(first))
        asyncio.run(session.flush())
        table = session.results(block)
        session.merge()
        requested.append(len(judge.requested))
    assert requested == [3, 1 if patience is None else 0]
    assert session.cached == 3
    assert table["grade"].to_pylist() == ([4, 1, 1, 1] if patience is None else [4, 1, 1])


@pytest.mark.parametrize(("share", "limit"), [(0.0, 0), (0.02, 5), (0.1, 10)])
def test_a_session_stops_above_its_missing_limit(share: float, limit: int) -> None:
    judge = TableJudge({Pair("q", f"c{n}"): None for n in range(100)}, in_flight=1)
    session = JudgingSession(judge, None, 100, share, NullProgress())
    with pytest.raises(
        PyriteError, match=rf"{limit + 1} of 100 pairs .* judge.max_missing \({share:.0%}\) allows.*: no"
    ):
        asyncio.run(session.judge_all([("q", [f"c{n}" for n in range(100)])]))
    assert len(judge.requested) == limit + 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("judge", r"more than judge\.max_missing .* Check the judge's server\.$"),
        ("judge.first", r"more than judge\.max_missing .* Check the server of judge\.first\.$"),
        ("evaluate.judge", r"more than evaluate\.judge\.max_missing .* Check the server of evaluate\.judge\.$"),
    ],
)
def test_an_error_about_missing_pairs_names_the_judge(section: str, message: str) -> None:
    judge = TableJudge({Pair("q", "c"): None})
    judge.section = section
    with pytest.raises(PyriteError, match=message):
        asyncio.run(JudgingSession(judge, None, 1, 0.0, NullProgress()).judge_all([("q", ["c"])]))


def test_the_missing_limit_is_a_share_of_the_needed_pairs() -> None:
    """Regression: with 50 pairs per query, of which one is needed, a third of the grades could be missing."""
    queries = [(f"q{n}", [f"c{rank}" for rank in range(50)]) for n in range(12)]
    grades = {Pair(query, id): None if int(query[1:]) < 6 and id == "c0" else 1 for query, ids in queries for id in ids}
    session = JudgingSession(TableJudge(grades), None, 600, 0.02, NullProgress())
    block = Block(queries, finished=lambda _query, graded, _pending: bool(graded))
    with pytest.raises(PyriteError, match=r"6 of 18 pairs .* judge.max_missing \(2%\)"):
        asyncio.run(session.judge_blocks([block]))


class RejectingJudge(ShareableTableJudge):
    """The server rejects the pairs whose grade is None."""

    async def grade(self, pair: Pair) -> Judgment | Missing:
        result = await super().grade(pair)
        return result._replace(kind="rejected") if isinstance(result, Missing) else result


@pytest.mark.parametrize(("judged", "in_flight"), [(False, 1), (False, 8), (True, 1), (True, 8)])
def test_rejected_pairs_stop_a_session_if_no_pair_is_judged(tmp_path: Path, judged: bool, in_flight: int) -> None:
    """Regression: one rejected prompt stopped the run, and again at every restart."""
    rejected: dict[Pair, int | None] = {Pair(f"q{n}", "c"): None for n in range(200)}
    first: dict[Pair, int | None] = {Pair("q", "c"): 4} if judged else {}
    queries = [(pair.query_id, [pair.passage_id]) for pair in first | rejected]
    for restart in range(2):
        judge = RejectingJudge(first | rejected, in_flight)
        cache = open_cache(open_store(str(tmp_path)), judge, f"run/{restart}")
        session = JudgingSession(judge, cache, len(queries), 1.0, NullProgress())
        asyncio.run(session.load_cached({query for query, _ in queries}))
        if judged:
            asyncio.run(session.judge_all(queries))
            asyncio.run(session.flush())
            assert (len(session.missing), session.cached) == (200, restart)
        else:
            with pytest.raises(UserError, match=r"rejected the first 101 pairs, and no .*: no\. .*query q\d+,"):
                asyncio.run(session.judge_all(queries))


def test_the_stop_message_counts_reasons_by_kind() -> None:
    class Quoting(TableJudge):
        async def grade(self, pair: Pair) -> Judgment | Missing:
            return Missing(pair, f"no grade: '{pair.passage_id}'", 3, "unparsable")

    session = JudgingSession(Quoting({}, in_flight=1), None, 100, 0.02, NullProgress())
    with pytest.raises(PyriteError, match=r"reason \(6 times, for example\): no grade: 'c0'\. Check the judge's"):
        asyncio.run(session.judge_all([("q", [f"c{n}" for n in range(100)])]))


def test_the_next_block_starts_while_the_last_query_is_judged() -> None:
    """A judge that waited for the end of each block would be idle. Results are still in order."""
    waits = asyncio.Event()

    class Waiting(TableJudge):
        async def grade(self, pair: Pair) -> Judgment | Missing:
            if pair.query_id == "slow":
                await asyncio.wait_for(waits.wait(), 60)
            if pair.query_id == "q9":
                waits.set()
            return Judgment(pair, 1, None)

    taken, finished = [], []

    def blocks() -> Iterator[Block]:
        for number in range(4):
            taken.append((number, len(finished)))
            own = ["slow", *(f"q{n}" for n in range(5))] if number == 0 else [f"q{n}" for n in range(5, 10)]
            yield Block([(query, [f"c{number}"]) for query in own], number=number)

    def finish(block: Block) -> None:
        finished.append(block.number)
        assert session.results(block)["passage_id"].to_pylist() == [f"c{block.number}"] * len(list(block.queries))

    session = JudgingSession(Waiting({}, in_flight=2), None, 21, 0.0, NullProgress())
    asyncio.run(session.judge_blocks(blocks(), finish))
    assert finished == [0, 1, 2, 3]
    assert taken == [(0, 0), (1, 0), (2, 1), (3, 2)], "a third block waits until the first has finished"
