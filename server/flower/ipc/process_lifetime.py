"""What the two processes of a job do first: they end with the coordinator."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

__all__ = ["end_with"]

_PR_SET_PDEATHSIG: Final = 1


def end_with(parent: int) -> None:
    """Have the kernel end this process when the thread that started it ends.

    :param parent: the number of the process that should be this one's parent.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)
