"""What both sides of the comparison write: one line a sample, the same fields measured the same way.

Needs nothing but Python, for it runs in the environment of kvpress too. Linux only: the peak of a
process is reset between samples through /proc.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEY = ("side", "question", "method", "share", "task", "seed")


def memory_mib(field: str) -> float:
    """Return ``VmRSS`` or ``VmHWM`` of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


class Log:
    """A JSONL file; what it holds is not measured again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        rows = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        self._done = {tuple(row[key] for key in KEY) for row in rows}

    def measure(self, number: str, answer: Callable[[], str], **key: Any) -> None:
        """Time one sample from its prompt to its answer and note the peak of the process.

        Parameters
        ----------
        number : str
            What the answer must hold.
        answer : callable
            Reads the prompt and returns the answer.
        **key
            The fields of ``KEY``, by name.
        """
        if tuple(key[name] for name in KEY) in self._done:
            return
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
        start = time.perf_counter()
        text = answer()
        row = key | {
            "hit": number in text,
            "answer": text,
            "seconds": time.perf_counter() - start,
            "peak_mib": memory_mib("VmHWM"),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
