"""As many threads as there are cores that this process may use: a container's limit is not seen by the libraries.

They start one a core of the node, which then share what the limit leaves and wait for each other's turns.
"""

import math
import os
from pathlib import Path


def keep_to_limit(groups: Path = Path("/sys/fs/cgroup")) -> None:
    """Set OMP_NUM_THREADS, which all of them read when they are loaded, where there is a limit and nobody set it."""
    limit = core_limit(groups)
    if limit is not None and limit < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(limit))


def core_limit(groups: Path) -> int | None:
    """The control group's limit in whole cores, rounded up; None where there is none.

    Version 2 has quota and period in one file, version 1 one file for each:
    https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((groups / name).read_text(encoding="ascii") for name in names).split()
            cores = int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # not this version; or "max"
            continue
        return math.ceil(cores) if cores > 0 else None  # -1: none
    return None
