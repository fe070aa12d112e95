"""What is told and kept of one sequence in the cache: progress, evictions, counters, copies of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from restkv_local.observe import QueryMoments
from restkv_local.repetition import Repetition
from restkv_local.row_table import RowSnapshot


@dataclass(frozen=True, slots=True)
class Progress:
    """How far reading is: tokens processed of total, seconds so far, evictions so far."""

    processed: int
    total: int
    seconds: float
    events: int


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class EvictionEvent:
    """One eviction: rows before and after per layer and KV head, and what it cost in milliseconds."""

    seen: int
    used: int
    kept: int
    score_ms: float
    compact_ms: float
    guide_ms: float


@dataclass(slots=True)
class Counters:
    """What the cache did since it was opened or cleared."""

    seen: int = 0  # tokens that entered, probes not counted
    peak: int = 0  # most rows in use at any moment, probes counted
    events: int = 0
    score_ms: float = 0.0
    compact_ms: float = 0.0
    guide_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A sequence at one moment: rows and observed queries, what the host knows of them, counters."""

    state: bytes
    rows: RowSnapshot
    counters: Counters
    moments: QueryMoments
    repetition: Repetition | None
