"""Turns an engine's snapshot into what a container holds, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from restkv_local.observe import QueryMoments
from restkv_local.repetition import Repetition
from restkv_local.row_table import RowSnapshot
from restkv_local.sequence import Counters, Snapshot
from restkv_local.storage.container import Arrays
from restkv_local.types import Tracked

_FIGURE: Final = "figure-"


def pack_snapshot(snapshot: Snapshot) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return a snapshot as JSON values and arrays: ``state``, ``positions``, ``turned-to`` and what is tracked."""
    rows, moments = snapshot.rows, snapshot.moments
    arrays: dict[str, npt.NDArray[Any]] = {
        "state": np.frombuffer(snapshot.state, np.uint8),
        "positions": rows.positions,
        "turned-to": rows.turned_to,
        **{f"{_FIGURE}{kind}": array for kind, array in rows.figures.items()},
    }
    if moments.first is not None and moments.second is not None:
        arrays |= {"first-moment": moments.first, "second-moment": moments.second}
    meta = {
        "counters": dataclasses.asdict(snapshot.counters),
        "n_queries": moments.n,
        "repetition": snapshot.repetition and dataclasses.asdict(snapshot.repetition),
    }
    return meta, arrays


def unpack_snapshot(meta: Mapping[str, Any], arrays: Arrays) -> Snapshot:
    """Return the snapshot that :func:`pack_snapshot` took apart; arrays it did not make are ignored."""
    figures: dict[Tracked, Any] = {
        name.removeprefix(_FIGURE): array  # type: ignore[misc]
        for name, array in arrays.items()
        if name.startswith(_FIGURE)
    }
    repetition = meta["repetition"]
    return Snapshot(
        state=arrays["state"].tobytes(),
        rows=RowSnapshot(arrays["positions"], arrays["turned-to"], figures),
        counters=Counters(**meta["counters"]),
        moments=QueryMoments(
            meta["n_queries"], arrays.get("first-moment"), arrays.get("second-moment")
        ),
        repetition=repetition
        and Repetition(**{**repetition, "request": tuple(repetition["request"])}),
    )


def tracked_kinds(snapshot: Snapshot) -> frozenset[Tracked]:
    """Return the figures of earlier queries that a snapshot has."""
    queries: frozenset[Tracked] = frozenset({"queries"} if snapshot.moments.n else ())
    return queries | frozenset(snapshot.rows.figures)


def snapshot_bytes(snapshot: Snapshot) -> int:
    """Return the memory a snapshot takes."""
    return sum(array.nbytes for array in pack_snapshot(snapshot)[1].values())
