"""Format numbers like Grafana, for the units that our panels use."""

import math
from datetime import datetime

_TIMES = ((86400 * 7, "weeks"), (86400, "days"), (3600, "hours"), (60, "mins"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SHORT = ("", " K", " Mil", " Bil", " Tri")
_COUNT = ("", "K", "M", "B", "T")


def format_value(value: float, unit: str, decimals: int | None = None, now: float = 0.0) -> str:
    """Format ``value`` with its unit; without ``decimals`` with about three digits. ``now`` determines the current day.

    Raises:
        ValueError: the unit is unknown; implement Grafana's format here.
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞"
    unit_type, _, suffix = unit.partition(":")
    if unit_type == "count":
        return f"{_thousands(value, decimals, _COUNT)} {suffix}"
    match unit:
        case "none":
            return _fixed(value, decimals)
        case "short":
            return _thousands(value, decimals, _SHORT)
        case "percentunit":
            return f"{_fixed(100 * value, decimals)}%"
        case "watt":
            return f"{_fixed(value, decimals)} W"
        case "currencyUSD":
            return f"${_thousands(value, decimals, _COUNT)}"
        case "s":
            return _seconds(value, decimals)
        case "dateTimeAsLocalNoDateIfToday":
            moment = datetime.fromtimestamp(value / 1000)
            today = moment.date() == datetime.fromtimestamp(now).date()
            return moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")
    raise ValueError(f"Unknown Grafana unit {unit!r}; implement its format in scripts/preview/units.py.")


def _fixed(value: float, decimals: int | None) -> str:
    if decimals is None:
        is_integer = value == 0 or value % 1 == 0
        decimals = 0 if is_integer else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def _thousands(value: float, decimals: int | None, suffixes: tuple[str, ...]) -> str:
    power = math.floor(math.log10(abs(value)) / 3) if value else 0
    power = min(max(power, 0), len(suffixes) - 1)
    return f"{_fixed(value / 1000**power, decimals)}{suffixes[power]}"


def _seconds(value: float, decimals: int | None) -> str:
    size, name = next((unit for unit in _TIMES if abs(value) >= unit[0]), (1.0, "s") if value == 0 else _TIMES[-1])
    return f"{_fixed(value / size, decimals)} {name}"
