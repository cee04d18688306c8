"""The session of a cascade: the second judge grades what the first has not decided, and audits a share of the rest."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pyrite.judges.base import Pair
from pyrite.judges.noise import uniform
from pyrite.judges.session import Block, Graded, JudgingSession


class AuditedPair(NamedTuple):
    """A pair that the first judge had decided, and the grades of both judges."""

    pair: Pair
    first: int
    second: int


def is_audited(pair: Pair, share: float) -> bool:
    """Whether a pair is in the audit sample: a random ``share`` of all pairs, always the same."""
    return uniform("audit", *pair) < share


class CascadeSession(JudgingSession):
    """A session of the second judge. Pairs that the first judge has decided are not sent to it, except for the audit.

    Attributes:
        audit: share of the decided pairs to audit.
        audited: the pairs of the audit. They have the second judge's grade.
    """

    def __init__(self, *arguments: Any, **options: Any):
        """As JudgingSession."""
        super().__init__(*arguments, **options)
        self.audited: list[AuditedPair] = []
        self.audit = 0.0

    async def graded(self, block: Block, pair: Pair) -> Graded | None:
        first = block.decided.get(pair)
        if first is None:
            return await super().graded(block, pair)
        if not is_audited(pair, self.audit):
            self.on_decided()
            return Graded.of(first)
        second = await super().graded(block, pair)
        if second is not None:
            self.audited.append(AuditedPair(pair, first.grade, second.grade))
        return second

    def on_decided(self) -> None:
        """The first judge's grade of a pair is used."""
        self._progress.advance()

    def requested(self, block: Block, query_id: str, passage_ids: Sequence[str]) -> Sequence[str]:
        return [
            passage
            for passage in super().requested(block, query_id, passage_ids)
            if Pair(query_id, passage) not in block.decided or is_audited(Pair(query_id, passage), self.audit)
        ]
