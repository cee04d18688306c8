"""The results of `pyrite probe`: the speed of the run's judge, and whether it failed."""

import json
from collections.abc import Mapping
from typing import Any

from pyrite.executors.step import Run
from pyrite.judges import fingerprint
from pyrite.judges.base import short
from pyrite.plan import failed_checks


def probe_folder(run: Run) -> str:
    """Where the probe of the run's current judge, with its calibration, is stored."""
    names = short(fingerprint(run.spec.main_judge)), run.external.get("calibration", "")[:12]
    return f"{run.prefix}/probe/{'-'.join(filter(None, names))}"


def probed(run: Run, *, any_calibration: bool = False) -> dict[str, Any] | None:
    """The latest probe of the run's current judge (probe.json); None if there is none.

    Args:
        any_calibration: also accept a probe with another calibration: the judge's speed is the same.
    """
    keys = [key for key in run.store.keys(f"{run.prefix}/probe") if key.endswith("/probe.json")]
    found: list[dict[str, Any]] = [json.loads(run.store.read(key)) for key in keys]
    own = [each for each in found if each["judge"]["fingerprint"] == fingerprint(run.spec.main_judge)]
    if not any_calibration:
        calibration = run.external.get("calibration", "")
        own = [each for each in own if each["judge"].get("calibration", "") == calibration]
    return max(own, key=lambda each: each["finished"], default=None)


def probe_failure(probe: Mapping[str, Any] | None) -> str | None:
    """The no-go of a probe with its failed checks, as text; None if there is no probe or it did not fail."""
    if probe is None or probe["go"] is not False:
        return None
    return f"this judge failed its probe ({failed_checks(probe)})"
