"""Numbers as Grafana writes them, for the units that our panels have."""

import math
from datetime import datetime

_TIMES = ((86400 * 7, "weeks"), (86400, "days"), (3600, "hours"), (60, "mins"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SHORT = ("", " K", " Mil", " Bil", " Tri")
_COUNT = ("", "K", "M", "B", "T")


def shown(value: float, unit: str, decimals: int | None = None, now: float = 0.0) -> str:
    """``value`` with its unit; without ``decimals`` about three digits. ``now`` says which day is today.

    Raises:
        ValueError: no panel had this unit before; write down here how Grafana shows it.
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞"
    kind, _, word = unit.partition(":")
    if kind == "count":
        return f"{_thousands(value, decimals, _COUNT)} {word}"
    match unit:
        case "none":
            return _fixed(value, decimals)
        case "short":
            return _thousands(value, decimals, _SHORT)
        case "percentunit":
            return f"{_fixed(100 * value, decimals)}%"
        case "currencyUSD":
            return f"${_thousands(value, decimals, _COUNT)}"
        case "s":
            return _seconds(value, decimals)
        case "dateTimeAsLocalNoDateIfToday":
            then = datetime.fromtimestamp(value / 1000)
            today = then.date() == datetime.fromtimestamp(now).date()
            return then.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")
    raise ValueError(f"the preview does not know Grafana's unit {unit!r}")


def _fixed(value: float, decimals: int | None) -> str:
    if decimals is None:
        whole = value == 0 or value % 1 == 0
        decimals = 0 if whole else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def _thousands(value: float, decimals: int | None, words: tuple[str, ...]) -> str:
    power = math.floor(math.log10(abs(value)) / 3) if value else 0
    power = min(max(power, 0), len(words) - 1)
    return f"{_fixed(value / 1000**power, decimals)}{words[power]}"


def _seconds(value: float, decimals: int | None) -> str:
    size, word = next((one for one in _TIMES if abs(value) >= one[0]), (1.0, "s") if value == 0 else _TIMES[-1])
    return f"{_fixed(value / size, decimals)} {word}"
