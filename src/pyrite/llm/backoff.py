"""How long to wait before a request is sent again. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_FIRST = 0.5
_LONGEST = 30.0

#: A server may ask for more than our longest pause, within reason.
_LONGEST_ASKED = 120.0


def pause(failures: int, asked: float | None, draw: float) -> float:
    """Seconds to wait after ``failures`` (from 1) in a row.

    Exponential with full jitter (Brooker, "Exponential Backoff And Jitter", 2015): ``draw`` is uniform in [0, 1).
    ``asked`` is what the server's Retry-After says; then no less than that.
    """
    waited = draw * min(_LONGEST, _FIRST * 2.0 ** min(failures - 1, 16))
    return waited if asked is None else min(asked, _LONGEST_ASKED) + waited


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the Retry-After header asks for, given as seconds or as an HTTP date; None without a sound one."""
    text = headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, ((when if when.tzinfo else when.replace(tzinfo=UTC)) - now).total_seconds())
