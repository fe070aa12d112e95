"""What both sides of the comparison write: one line a sample, the same fields measured the same way.

Needs nothing but Python, for it runs in the environment of kvpress too. Linux only: the peak of a
process is reset between samples through /proc.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from measured import Log


def memory_mib(field: str) -> float:
    """Return ``VmRSS`` or ``VmHWM`` of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def measure(log: Log, number: str, answer: Callable[[], str], **sample: Any) -> None:
    """Time one sample from its prompt to its answer and note the peak of the process, if the log lacks it.

    Parameters
    ----------
    log : Log
        What has been measured.
    number : str
        What the answer must hold.
    answer : callable
        Reads the prompt and returns the answer.
    **sample
        What it is a sample of: side, question, method, share, task, seed.
    """
    if sample in log:
        return
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    start = time.perf_counter()
    text = answer()
    seconds = time.perf_counter() - start
    found = {"hit": number in text, "answer": text, "seconds": seconds}
    log.add(sample | found | {"peak_mib": memory_mib("VmHWM")})
