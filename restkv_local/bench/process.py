"""Runs a cell in a process of its own, so that its peak memory can be seen from outside and nothing lives on in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import psutil

from restkv_local.bench.cell import Cell

_COMMAND = (sys.executable, "-m", "restkv_local.bench")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Measure a cell in a child process.

    Parameters
    ----------
    cell : Cell
        What is measured.

    Returns
    -------
    dict
        ``result``: what :func:`~restkv_local.bench.cell.measure` returns, with ``peak_bytes``, the most
        resident memory the whole process ever had as the system counts it. Or ``error``: in one line, why
        there is none.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C, once the child is gone.
    """
    job = json.dumps({**asdict(cell), "options": dict(cell.options)})
    # Python 3.11 and later: a folder named as we are, here, is not us.
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    if cell.upstream:
        environment["RESTKV_TILES"] = "0"
    with (
        tempfile.TemporaryFile("w+", errors="replace") as complaints,
        subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=environment,
            text=True,
        ) as child,
    ):
        try:
            return _converse(child, job, complaints)
        except BaseException:
            child.kill()
            raise


def _converse(child: subprocess.Popen[str], job: str, complaints: IO[str]) -> dict[str, Any]:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(job + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        return {"error": _explain(child.wait(), complaints)}
    reply: dict[str, Any] = json.loads(line)
    peak = _peak_while_alive(child.pid)
    child.stdin.close()
    if peak is None:
        peak = _peak_at_end(child)
    if "result" in reply:
        reply["result"]["peak_bytes"] = peak
    return reply


def _peak_while_alive(pid: int) -> int | None:
    """Peak resident memory of a process that waits, in bytes; None where only its end tells."""
    if sys.platform == "linux":
        # Not ru_maxrss: a child inherits that of the process that started it.
        found = _PEAK.search(Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else None
    if sys.platform == "win32":
        return int(psutil.Process(pid).memory_info().peak_wset)
    return None


def _peak_at_end(child: subprocess.Popen[str]) -> int | None:
    """Wait for a process; return its peak resident memory in bytes, None where nothing tells."""
    if sys.platform == "win32":
        return None
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _explain(code: int, complaints: IO[str]) -> str:
    """Say in one line why a process ended without a result."""
    complaints.seek(0)
    lines = [line.strip() for line in complaints if line.strip()]
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    if code == -9:
        how += " (out of memory?)"
    return f"the process ended {how}" + (f": {lines[-1]}" if lines else "")
