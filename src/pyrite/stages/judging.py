"""The judging of a shard by one judge. A cascade extends it (``pyrite.stages.cascade``)."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pyrite.judges.cascade import CascadeSession
from pyrite.judges.session import QueryPassages


class Judging:
    """Judges the passages of a shard's queries."""

    def __init__(self, session: CascadeSession, queries: Sequence[QueryPassages], known: Mapping[str, Collection[str]]):
        """``known`` as in ``JudgingSession.judge_all``."""
        self.session, self.queries, self.known = session, queries, known

    async def judge(self) -> None:
        """Judge all pairs. The session's judge must be open. Raises as ``JudgingSession.judge_all``."""
        await self.session.judge_all(self.queries, self.known)

    async def flush(self) -> None:
        """Store the judgments since the last call."""
        await self.session.flush()

    def missing_rows(self) -> list[dict[str, Any]]:
        """The missing pairs so far, as rows of ``tables.MISSING``."""
        return self.session.missing_rows()

    def results(self, judged: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
        """The judgments to publish, and more counts for the summary. ``judged``: those of the session's judge."""
        return judged, {}
