"""Limit the threads of libraries to the CPU limit of the container.

The libraries do not read that limit. They start a thread per core of the node, and the threads then compete for the
few cores that the limit allows.
"""

import math
import os
from pathlib import Path


def limit_threads(groups: Path = Path("/sys/fs/cgroup")) -> None:
    """Set OMP_NUM_THREADS, unless it is set already or there is no limit. Libraries read it when they are loaded."""
    limit = core_limit(groups)
    if limit is not None and limit < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(limit))


def core_limit(groups: Path) -> int | None:
    """The CPU limit of the control group in cores, rounded up; None if there is none.

    Version 2 has quota and period in one file, version 1 has a file for each:
    https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((groups / name).read_text(encoding="ascii") for name in names).split()
            cores = int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # no such file, or the quota "max"
            continue
        return math.ceil(cores) if cores > 0 else None  # a quota of -1: no limit
    return None
