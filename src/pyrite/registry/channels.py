"""The channels of a domain, as the history of their moves. Pure functions.

A channel points to the version of its last move. Rollback undoes a promote, so several rollbacks go back
one version each. The history keeps all moves.
"""

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pyrite.errors import UserError
from pyrite.registry.names import LATEST, check_channel, version_name, version_number

Action = Literal["publish", "promote", "rollback"]


class Stamp(NamedTuple):
    """The time of a move (ISO 8601, UTC) and its unique id."""

    time: str
    id: str


class Move(NamedTuple):
    """One move of a channel to a version (its number)."""

    channel: str
    version: int
    action: Action
    stamp: Stamp


History = Sequence[Move]


def current(history: History) -> dict[str, int]:
    """The version of each channel."""
    return {move.channel: move.version for move in history}


def published(history: History, version: int, stamp: Stamp) -> History:
    """``history`` after ``version`` was published: latest points to it, unless it points to a newer version."""
    if current(history).get(LATEST, 0) >= version:
        return history
    return [*history, Move(LATEST, version, "publish", stamp)]


def promoted(history: History, channel: str, version: int, stamp: Stamp) -> History:
    """``history`` after ``channel`` was moved to ``version``. It is unchanged if the channel points there.

    Raises:
        UserError: ``channel`` is latest.
    """
    check_movable(channel)
    if current(history).get(channel) == version:
        return history
    return [*history, Move(channel, version, "promote", stamp)]


def rolled_back(history: History, channel: str, stamp: Stamp) -> History:
    """``history`` after ``channel`` was moved to the version before its current one.

    Raises:
        UserError: ``channel`` is latest, or has no version before.
    """
    check_movable(channel)
    versions = _versions(history, channel)
    if len(versions) < 2:
        why = f"has been at {version_name(versions[0])} only" if versions else "does not exist"
        raise UserError(
            f"channel {channel} cannot be rolled back: it {why}. `pyrite promote` moves it to another version."
        )
    return [*history, Move(channel, versions[-2], "rollback", stamp)]


def _versions(history: History, channel: str) -> list[int]:
    """The versions of ``channel`` that rollback has not undone, the current one last."""
    versions: list[int] = []
    for move in history:
        if move.channel != channel:
            continue
        if move.action == "rollback":
            versions.pop()
        else:
            versions.append(move.version)
    return versions


def check_movable(channel: str) -> None:
    """Raises UserError if ``channel`` is latest, or not a valid name of a channel."""
    if check_channel(channel) == LATEST:
        raise UserError(
            "channel latest is always the newest version, so it cannot be moved. Use another channel, such as "
            "production."
        )


def dump(history: History) -> bytes:
    """The content of channels.json."""
    moves = [
        {"channel": move.channel, "version": version_name(move.version), "action": move.action, **move.stamp._asdict()}
        for move in history
    ]
    channels = {channel: version_name(version) for channel, version in sorted(current(history).items())}
    return json.dumps({"channels": channels, "history": moves}, indent=1).encode()


def parse(data: bytes) -> History:
    """The history in a channels.json. Raises ValueError if it is not one."""
    try:
        moves = [
            Move(row["channel"], version_number(row["version"]), row["action"], Stamp(row["time"], row["id"]))
            for row in json.loads(data)["history"]
        ]
        for channel in current(moves):
            _versions(moves, channel)
    except (TypeError, KeyError, IndexError, UserError) as error:
        raise ValueError(f"it is not a history of channels ({error})") from error
    return moves
