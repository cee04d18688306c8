"""Batches: no passage is in a batch with a query that it is relevant to."""

from hypothesis import given
from hypothesis import strategies as st

from pyrite.training.batching import ConflictFreeSampler, Row, order, pack

ids = st.frozensets(st.sampled_from("abcdefgh"), max_size=3)
rows = st.lists(st.builds(Row, st.sampled_from("123456"), ids, ids, st.sampled_from("xy")), max_size=40)


@given(rows=rows, batch_size=st.integers(1, 8), random=st.randoms(use_true_random=False))
def test_batches_have_every_row_once_and_no_conflicts(rows: list[Row], batch_size: int, random: object) -> None:
    positions = list(range(len(rows)))
    random.shuffle(positions)  # type: ignore[attr-defined]
    batches = pack(rows, positions, batch_size)
    assert sorted(position for batch in batches for position in batch) == sorted(positions)
    for batch in batches:
        assert len(batch) <= batch_size
        for a in batch:
            for b in batch:
                if a != b:
                    assert rows[a].passages.isdisjoint(rows[b].relevant)
                    assert rows[a].query_id != rows[b].query_id


def test_the_order_depends_on_the_epoch_and_is_repeatable() -> None:
    rows = [Row(str(i), frozenset([str(i)]), frozenset([str(i)]), str(i)) for i in range(64)]

    def epoch(number: int) -> list[list[int]]:
        sampler = ConflictFreeSampler(rows, 4, rows, seed=1)
        sampler.set_epoch(number)
        return list(sampler)

    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert sorted(map(sorted, epoch(0))) == sorted(map(sorted, epoch(1)))


def test_the_rows_of_a_group_share_a_batch() -> None:
    rows = [Row(str(i), frozenset([str(i)]), frozenset([str(i)]), str(i % 16)) for i in range(64)]
    for batch in pack(rows, order(rows, seed=3), 16):
        groups = [rows[position].group for position in batch]
        assert len(set(groups)) == 4
