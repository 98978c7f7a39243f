"""No process outlives the one that started it: it ends with it, however that ends (Linux)."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with(parent: int) -> bool:
    """Asks the system to kill this process when its parent, whose number is given, ends. False if that has ended already."""
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent
