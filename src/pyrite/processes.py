"""Child processes that end with their parent, and the memory of processes."""

import ctypes
import os
import resource
import signal
import sys


def die_with_parent(parent: int | None = None) -> None:
    """On Linux, have the kernel kill this process when its parent ends. Call it first.

    Args:
        parent: the parent's process id, if the parent may have ended already.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os._exit(1)


def peak_memory() -> int:
    """Peak resident memory in bytes of this process, or of the largest child that has ended."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak if sys.platform == "darwin" else peak * 1024
