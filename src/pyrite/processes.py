"""Child processes end with their parent."""

import ctypes
import os
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
