"""Names, and the history of channels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrite.errors import UserError
from pyrite.registry import channels
from pyrite.registry.channels import History, Stamp
from pyrite.registry.names import parse_target

CHANNELS = ("production", "staging")
versions = st.integers(1, 6)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.just("latest"), versions),
        st.tuples(st.just("promote"), st.sampled_from(CHANNELS), versions),
        st.tuples(st.just("rollback"), st.sampled_from(CHANNELS), st.just(0)),
    ),
    max_size=20,
)


def apply(history: History, action: str, channel: str, version: int, number: int) -> History:
    stamp = Stamp("2026-11-22T20:00:00+00:00", str(number))
    if action == "publish":
        return channels.published(history, version, stamp)
    if action == "promote":
        return channels.promoted(history, channel, version, stamp)
    return channels.rolled_back(history, channel, stamp)


@given(actions)
def test_channels_behave_like_stacks_of_versions(steps: list[tuple[str, str, int]]) -> None:
    history: History = []
    stacks: dict[str, list[int]] = {"latest": [], "production": [], "staging": []}
    for number, (action, channel, version) in enumerate(steps):
        stack, before = stacks[channel], list(history)
        if action == "rollback" and len(stack) < 2:
            with pytest.raises(UserError, match="cannot be rolled back"):
                apply(history, action, channel, version, number)
            continue
        history = apply(history, action, channel, version, number)
        if action == "rollback":
            stack.pop()
        elif action == "publish":
            stack[:] = [max([*stack, version])]
        elif not stack or stack[-1] != version:
            stack.append(version)
        assert channels.current(history) == {name: each[-1] for name, each in stacks.items() if each}
        assert list(history[: len(before)]) == before, "the history keeps all moves"
        assert list(channels.parse(channels.dump(history))) == list(history)


@pytest.mark.parametrize("change", ["promote", "rollback"])
def test_latest_cannot_be_moved_by_hand(change: str) -> None:
    with pytest.raises(UserError, match="always the newest"):
        apply([], change, "latest", 1, 0)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"history": [{}]}',
        b'{"history": [{"channel": "a", "version": "v0", "action": "promote", "time": "", "id": ""}]}',
        b'{"history": [{"channel": "a", "version": "v1", "action": "rollback", "time": "", "id": ""}]}',
    ],
)
def test_a_damaged_history_is_not_read(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        channels.parse(content)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("medicine", ("medicine", "production")),
        ("us-law@latest", ("us-law", "latest")),
        ("medicine@v12", ("medicine", "v12")),
    ],
)
def test_a_target_is_a_domain_with_a_channel_or_version(text: str, expected: tuple[str, str]) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["", "Medicine", "a/b", "../a", "a_b", "-a", "a-", "a" * 64, "a@", "a@v0/..", "a@B"])
def test_an_invalid_target_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match="is not a valid"):
        parse_target(text)
