"""Frees what a native library holds when the Python object that stands for it goes."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any


def free_with(owner: object, free: Callable[[], None]) -> weakref.finalize[[], Any]:
    """Have ``free`` called when ``owner`` goes; it must not refer to ``owner``.

    Not at exit: the system takes all, and a thread may still be in a call. Nor in a forked child, whose threads and
    devices are the parent's.
    """
    pid = os.getpid()

    def free_here() -> None:
        if os.getpid() == pid:
            free()

    finalizer = weakref.finalize(owner, free_here)
    finalizer.atexit = False
    return finalizer
