"""Reads a text for many cells and lets each go on from its own evicted cache; one reading serves all it can."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from restkv_local.catalogue import tracked_by
from restkv_local.config import (
    DEFAULTS,
    Config,
    check_budget,
    least_budget,
    parse_budget,
    resolve_budget,
)
from restkv_local.engine import Engine
from restkv_local.errors import ConfigError, RestKVError
from restkv_local.evaluation.grid import Cell
from restkv_local.free_memory import free_memory
from restkv_local.llama import Llama
from restkv_local.model.model_file import check_supported, kv_bytes_per_token
from restkv_local.types import F32

Outcome = TypeVar("Outcome")
OnFailure = Callable[[Cell, RestKVError], None]
# Takes the engine after the eviction and the logits of the last token read.
Judge = Callable[[Cell, Engine, F32], Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What is read before an eviction.

    Attributes
    ----------
    tokens : list of int
        At least one.
    n_more : int
        Tokens that follow.
    guide : list of int
        Read as a probe before each eviction of bounded prefill; empty: the newest queries choose.
    n_pinned : int
        First tokens that no eviction may touch.
    seed : int
        Of policies that draw.
    """

    tokens: list[int]
    n_more: int
    guide: list[int] = field(default_factory=list)
    n_pinned: int = 0
    seed: int = 0


class Reader:
    """One model that reads passages under many rules.

    Parameters
    ----------
    llama : Llama
        The model; its own engine stays closed.
    settings : mapping
        Fields of Config that all cells share.
    """

    def __init__(self, llama: Llama, settings: Mapping[str, Any]) -> None:
        self.llama = llama
        self._settings = dict(settings)
        self._engine: Engine | None = None
        self._made_for: tuple[Config, frozenset[str]] | None = None

    def config(self, cell: Cell, **changes: Any) -> Config:
        """Return the options of a cell.

        Raises
        ------
        ConfigError
            If they do not go together.
        """
        names = {name: getattr(cell, name) for name in Cell.__slots__}
        return Config(**{**self._settings, **names, "temp": 0.0, **changes})

    def check(self, cell: Cell) -> None:
        """Refuse a cell that this model cannot do, before anything is read.

        Raises
        ------
        ConfigError
            If its rules do not go together, or the model's rows cannot be moved so.
        """
        config = self.config(cell)
        check_supported(
            self.llama.shape,
            type_k=config.type_k,
            type_v=config.type_v,
            positions=config.positions,
        )
        Engine(self.llama.native, self.llama.shape, config)

    def measure(
        self,
        cells: Sequence[Cell],
        passage: Passage,
        judge: Judge[Outcome],
        on_failure: OnFailure,
    ) -> Iterator[tuple[Cell, Outcome, float]]:
        """Read, evict and judge for each cell.

        Parameters
        ----------
        cells : sequence of Cell
            What evicts nothing comes first, then the others that share its reading.
        judge : callable
            Goes on from the evicted cache.
        on_failure : callable
            Called with each cell that cannot be done, and why; the others go on.

        Yields
        ------
        cell : Cell
        outcome
            What ``judge`` returned.
        read_s : float
            Seconds of its reading, without a full prefill's eviction. Cells that share one have the same.
        """
        for group in group_cells(cells, can_share=self._can_share(passage)):
            rows: dict[Cell, int] = {}
            if len(group) > 1:
                rows = self.resolve_rows(group, passage, on_failure)
                group = list(rows)
                if not group:
                    continue
            try:
                start = time.perf_counter()
                engine = self.read(group, passage)
                read_s = time.perf_counter() - start
                # Before any eviction: a policy may read a probe for it.
                logits = self.llama.native.logits().copy()
                snapshot = engine.save() if len(group) > 1 else None
            except RestKVError as error:
                for cell in group:
                    on_failure(cell, error)
                continue
            for cell in group:
                try:
                    if snapshot is not None:
                        engine.restore(snapshot)
                        engine.use(
                            policy=cell.policy, allocation=cell.allocation, budget=rows[cell]
                        )
                    if cell.evicts and cell.is_whole and engine.rows.mean > engine.budget:
                        engine.evict()
                    outcome = judge(cell, engine, logits)
                except RestKVError as error:
                    on_failure(cell, error)
                    continue
                yield cell, outcome, read_s

    def read(self, group: Sequence[Cell], passage: Passage) -> Engine:
        """Read a passage once for cells that share a reading; what is read whole is not evicted yet.

        Else it ends at the budget, where a chat keeps what was read since a single eviction: cells of one budget are
        compared with as many rows, whatever room their policies leave.

        Raises
        ------
        ConfigError
            If memory does not hold the rows, or a budget not what must stay.
        """
        evicting = [cell for cell in group if cell.evicts] or list(group)
        # Segments that may grow serve equal ones too, not the other way round.
        first = next((cell for cell in evicting if cell.allocation != "uniform"), evicting[0])
        # The cache that the largest budget needs serves the others too.
        largest = (
            max(evicting, key=lambda cell: self.rows(cell, passage)) if len(group) > 1 else first
        )
        guide = self._settings.get("guide", DEFAULTS.guide) if passage.guide else "off"
        config = self.config(first, budget=largest.budget, guide=guide, seed=passage.seed)
        tracked = frozenset(tracked_by(cell.policy for cell in group))
        engine = self._engine
        if engine is None or self._made_for != (config, tracked):
            self.llama.native.release()
            engine = Engine(self.llama.native, self.llama.shape, config, None, tracked)
            self._engine, self._made_for = engine, (config, tracked)
        else:
            engine.use(policy=first.policy, allocation=first.allocation)
        engine.open(len(passage.tokens), passage.n_more, passage.n_pinned)
        engine.clear()
        engine.read(passage.tokens, guide=passage.guide, evict=not first.is_whole, cut=True)
        return engine

    def _can_share(self, passage: Passage) -> bool:
        """Whether a reading can be copied: no sliding windows, and memory for the cache and two copies."""
        shape = self.llama.shape
        config = self.llama.config
        row_bytes = kv_bytes_per_token(shape, config.type_k, config.type_v)
        need = 3 * len(passage.tokens) * row_bytes
        return not any(shape.swa_layers) and need < free_memory()

    def resolve_rows(
        self, cells: Iterable[Cell], passage: Passage, on_failure: OnFailure
    ) -> dict[Cell, int]:
        """Return the rows of the cells that can be done; see :meth:`rows`."""
        rows = {}
        for cell in cells:
            try:
                rows[cell] = self.rows(cell, passage)
            except RestKVError as error:
                on_failure(cell, error)
        return rows

    def rows(self, cell: Cell, passage: Passage) -> int:
        """Return the rows of a budget that needs no cache of its own to be resolved.

        Raises
        ------
        ConfigError
            If it is in bytes, which pay for chunk and guide, too, or does not hold what must stay.
        """
        spec = parse_budget(cell.budget)
        if spec.kind == "bytes":
            raise ConfigError(
                f"{cell.budget} pays for a whole cache, and here are only plans; give rows or a percentage"
            )
        config = self.config(cell)
        n_least = least_budget(config, passage.n_pinned) if cell.evicts else 1
        rows = resolve_budget(spec, 0, 0, len(passage.tokens), n_least=n_least)
        if cell.evicts:
            check_budget(rows, config, passage.n_pinned)
        return rows


def group_cells(cells: Sequence[Cell], *, can_share: bool = True) -> list[list[Cell]]:
    """Sort cells into those that can share a reading, what evicts nothing first.

    What is read whole and then cut does not depend on policy, allocation and rows. Positions are the engine's, and
    a budget in bytes pays for the cache that its policy needs, so those have readings of their own.
    """
    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        if cell.evicts:
            shares = can_share and cell.is_whole and parse_budget(cell.budget).kind != "bytes"
            groups.setdefault(cell.positions if shares else cell, []).append(cell)
    sorted_groups = sorted(groups.items(), key=lambda item: isinstance(item[0], Cell))
    whole = [cell for cell in cells if not cell.evicts]
    if whole and sorted_groups and not isinstance(sorted_groups[0][0], Cell):
        sorted_groups[0][1][:0] = whole
        whole = []
    return [[cell] for cell in whole] + [group for _, group in sorted_groups]
