"""llama.cpp's log: one hook for the process; shown when verbose, and kept to explain a failure."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections import deque
from typing import Any

from restkv_local.control_characters import strip_control


class _Complaints(threading.local):
    """Of each thread its own: models that work at the same time must not explain each other's failures."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=20)


_complaints = _Complaints()
_is_shown = False


def listen(llama: Any, *, verbose: bool) -> None:
    """Set the hook; the newest caller decides whether the log is shown on stderr."""
    global _is_shown
    _is_shown = verbose
    llama.llama_log_set(_hook(llama), ctypes.c_void_p(0))


@functools.cache  # for ever: a collected callback is a crash
def _hook(llama: Any) -> Any:
    @llama.llama_log_callback  # type: ignore[untyped-decorator]
    def callback(level: int, text: bytes, _: Any) -> None:
        line = text.decode(errors="replace")
        if _is_shown:
            print(strip_control(line), end="", file=sys.stderr)  # it quotes the model's file
        if level in (3, 4) and line.strip():  # warning, error
            _complaints.lines.append(line.strip())

    return callback


def forget() -> None:
    """Forget what llama.cpp complained about on this thread, before a call that may fail."""
    _complaints.lines.clear()


def reason() -> str:
    """Return the last thing that llama.cpp complained about on this thread since :func:`forget`."""
    lines = _complaints.lines
    return lines[-1] if lines else "it gave no reason (try -v)"
