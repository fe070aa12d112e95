"""The order in which cells are measured, and the loop that measures those a log lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from restkv_local.bench.caches import Cache
from restkv_local.bench.cell import Cell
from restkv_local.bench.log import BenchLog, Sample
from restkv_local.bench.process import run_cell

Run = Callable[[Cell], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """A whole run.

    Attributes
    ----------
    model : str
        A GGUF file, or "demo".
    caches : sequence of Cache
        The columns.
    depths : sequence of int
        Tokens read before, each a group of rows.
    n_repetitions : int
        How often every cell is measured.
    n_prompt, n_gen : int
        Tokens of pp and of tg.
    """

    model: str
    caches: Sequence[Cache]
    depths: Sequence[int]
    n_repetitions: int
    n_prompt: int
    n_gen: int

    def order(self) -> list[tuple[int, int, Cache]]:
        """Return (repetition, depth, cache) of every cell, as they are measured.

        The columns of one row stand side by side in time, and each round begins with another column: a machine
        that grows slower or faster does so for all of them alike.
        """
        n = len(self.caches)
        return [
            (repetition, depth, self.caches[(i + repetition) % n])
            for repetition in range(self.n_repetitions)
            for depth in self.depths
            for i in range(n)
        ]


def run_bench(
    plan: BenchPlan,
    log: BenchLog,
    *,
    commit: str | None = None,
    run: Run = run_cell,
    on_cell: Callable[[str], None] = lambda text: None,
) -> list[Sample]:
    """Measure every cell of a plan that the log lacks.

    Parameters
    ----------
    plan : BenchPlan
        What is wanted.
    log : BenchLog
        What is there, and where the rest goes.
    commit : str, optional
        Of the checkout that runs.
    run : callable
        Measures one cell.
    on_cell : callable
        Called with a line about each cell before its turn.

    Returns
    -------
    list of Sample
        The samples of the plan, in its order. A cell that failed in an earlier run is tried again.
    """
    done = {sample.key: sample for sample in log.samples if sample.result is not None}
    order = plan.order()
    samples = []
    for number, (repetition, depth, cache) in enumerate(order, start=1):
        sample = Sample(cache.name, depth, repetition, commit)
        if sample.key not in done:
            on_cell(f"{number}/{len(order)}: {cache.name} @ d{depth}, round {repetition + 1}")
            cell = Cell(
                model=plan.model,
                options=cache.options,
                shifts=cache.shifts,
                upstream=cache.upstream,
                depth=depth,
                n_prompt=plan.n_prompt,
                n_gen=plan.n_gen,
            )
            done[sample.key] = replace(sample, options=dict(cache.options), **run(cell))
            log.add(done[sample.key])
        samples.append(done[sample.key])
    return samples
