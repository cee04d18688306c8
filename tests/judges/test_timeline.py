"""The timeline of a judge step, for any times between its pairs."""

from datetime import UTC, datetime
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.judges.timeline import MAX_BUCKETS, Timeline

START = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)
WAITS = st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 1e7))


@given(st.lists(st.tuples(WAITS, st.integers(1, 4)), max_size=300))
def test_pairs_are_counted_in_time_and_the_size_is_bounded(pairs: list[tuple[float, int]]) -> None:
    times = list(accumulate(wait for wait, _ in pairs))
    now = 0.0
    timeline = Timeline(START, lambda: 5.0 + now)  # a monotonic clock has an arbitrary origin
    for now, (_, grade) in zip(times, pairs, strict=True):  # noqa: B007  # the clock reads it
        timeline.add(grade)
    found = timeline.as_json()
    width, buckets = found["bucket_seconds"], found["grades"]
    assert len(buckets) <= MAX_BUCKETS
    expected = [[0, 0, 0, 0] for _ in buckets]
    for time, (_, grade) in zip(times, pairs, strict=True):
        expected[int((5.0 + time - 5.0) / width)][grade - 1] += 1
    assert buckets == expected
    assert found["seconds"] == pytest.approx(times[-1] if times else 0, abs=0.001)
    assert width == 1 or len(buckets) > MAX_BUCKETS / 2, "no coarser than necessary"
    assert found["started"] == "2026-11-22T20:00:00.000+00:00"
