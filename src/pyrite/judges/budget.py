"""How many pairs may stay without a grade before it is the judge that has to be looked at. Pure."""

import math
from collections import Counter

from pyrite.errors import PyriteError
from pyrite.judges.base import Missing

#: So few are never too many, be the work ever so small, unless there may be none.
FEW = 5


class MissingBudget:
    """``most`` of ``total`` pairs may be missing: the ``share`` of judge.max_missing, or ``few`` where that is less."""

    def __init__(self, share: float, total: int, few: int = FEW):
        self.most = max(few, math.ceil(share * total)) if share else 0
        self._share, self._total = share, total
        self._reasons: Counter[str] = Counter()

    def spend(self, missing: Missing) -> None:
        """One more is missing.

        Raises:
            PyriteError: that is one too many. Says why most are.
        """
        self._reasons[missing.reason] += 1
        if self._reasons.total() > self.most:
            reason, times = self._reasons.most_common(1)[0]
            raise PyriteError(
                f"{self._reasons.total()} of {self._total} pairs could not be graded, more than judge.max_missing "
                f"({self._share:.0%}) allows; {times} times: {reason}. Look at the judge's server."
            )
