"""Answers that are kept: paid for once, used by every run that asks the same model the same thing."""

from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from pyrite.append_log import AppendLog
from pyrite.store import Store

#: One answer. ``key`` is the digest of its request; ``latency`` is in seconds.
ANSWERS = pa.schema(
    [
        ("key", pa.string()),
        ("text", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("latency", pa.float32()),
        ("attempts", pa.int16()),
    ]
)


class ReplyCache:
    """The kept answers below ``generated/<fingerprint>/``; ``writer`` and ``attempt`` as in AppendLog."""

    def __init__(self, store: Store, fingerprint: str, writer: str, attempt: str):
        self._parts = AppendLog(store, f"generated/{fingerprint}", ANSWERS, "key", writer, attempt)

    def read(self, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        """The kept answers among ``keys``, as rows of ANSWERS; of several to one request, always the same one."""
        order = [(name, "descending") for name in ("attempts", "latency", "text")]
        return {row["key"]: row for row in self._parts.read(keys).sort_by(order).to_pylist()}

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep ``rows`` of ANSWERS."""
        self._parts.add(rows)

    def merge(self) -> None:
        """Tidy up after this writer's last row."""
        self._parts.merge()
