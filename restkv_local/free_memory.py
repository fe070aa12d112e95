"""How much memory this process can still take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a version of Linux' control groups says what a group may take and has taken."""

    folder: str
    limit: str
    usage: str
    cached: tuple[str, str]


_V1 = _Kind(
    "memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
_V2 = _Kind("", "memory.max", "memory.current", ("active_file", "inactive_file"))


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes that the machine has left, or a container if that is less.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` lie.

    Notes
    -----
    A process that takes more than its control group may is killed without a word, however much the machine has.
    What a group holds of files counts as left, as it does in the machine's own figure.
    """
    return min([psutil.virtual_memory().available, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield what each memory group around this process has left."""
    for kind, group in _find_groups(root):
        try:
            limit = int((group / kind.limit).read_text())
            usage = int((group / kind.usage).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            cached = sum(int(stat.get(name, 0)) for name in kind.cached)
        except (OSError, ValueError):
            continue  # no such group, or no limit: "max"
        yield max(limit - usage + cached, 0)


def _find_groups(root: Path) -> Iterator[tuple[_Kind, Path]]:
    """Yield this process' groups and those around them; not all need exist, as seen from a container."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        kind = _V1 if controllers else _V2
        top = root / "sys/fs/cgroup" / kind.folder
        group = top / path.lstrip("/")
        yield kind, top
        while group != top and top in group.parents:
            yield kind, group
            group = group.parent
