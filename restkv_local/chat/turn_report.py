"""What a turn took: the objects that ``--json`` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class TurnReport:
    """One turn, with the keys of the JSON report. Times are milliseconds, rates tokens a second."""

    model: str
    version: str
    response: str = ""
    # "stop", "length" or "cache_full" once the turn has ended by itself
    finish_reason: str = "cancelled"
    usage: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    kv: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        report = asdict(self)
        notes = report.pop("notes")
        return {**report, "notes": notes} if notes else report


def make_timings(n_read: int, read_s: float, n_said: int, said_s: float) -> dict[str, float]:
    """Return tokens, milliseconds and tokens a second of reading and of answering, in llama.cpp's words."""
    return {
        "prompt_n": n_read,
        "prompt_ms": round(read_s * 1e3, 3),
        "prompt_per_second": round(n_read / read_s, 3) if read_s else 0.0,
        "predicted_n": n_said,
        "predicted_ms": round(said_s * 1e3, 3),
        "predicted_per_second": round(n_said / said_s, 3) if said_s else 0.0,
    }
