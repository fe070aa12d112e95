"""One cell of the table: one cache at one depth, measured in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from restkv_local.bench import N_GEN, N_PROMPT
from restkv_local.bench.profile import Profile
from restkv_local.bench.shift import ContextShift
from restkv_local.bench.text import QUESTION, tokenize_text
from restkv_local.config import DEFAULTS
from restkv_local.engine import Engine
from restkv_local.llama import Llama


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is measured.

    Attributes
    ----------
    model : str
        A GGUF file, or "demo".
    options : mapping
        Fields of Config; ``guide`` says by which question rows are chosen, "auto" by one of our own.
    shifts : bool
        Whether the cache forgets by context shift, see :class:`~restkv_local.bench.caches.Cache`.
    upstream : bool
        Whether attention is llama.cpp's, see there; :func:`~restkv_local.bench.process.run_cell` sees to it.
    depth : int
        Tokens read before.
    n_prompt, n_gen : int
        Tokens read then (pp), and written one by one (tg).
    """

    model: str
    options: Mapping[str, Any]
    depth: int
    shifts: bool = False
    upstream: bool = False
    n_prompt: int = N_PROMPT
    n_gen: int = N_GEN


def measure(cell: Cell) -> dict[str, Any]:
    """Read a text that ends in a question, write, go back, read on; all tokens are text, none is sampled.

    Parameters
    ----------
    cell : Cell
        What is measured.

    Returns
    -------
    dict
        - ``ttft_s``: seconds from the first of ``depth`` tokens to the logits after the last, model loaded and
          warm; None at depth 0. ``tg_s``, ``pp_s``: seconds of the tokens after them, an eviction that falls
          into them included: ``writing`` tells. ``step_ms``: median of tg's single steps.
        - ``events``, ``score_ms``, ``compact_ms``, ``guide_ms``: the engine's counters after ``depth`` tokens.
        - ``reading``, ``writing``: seconds by :data:`~restkv_local.bench.profile.PARTS`, of TTFT and of tg.
        - ``rows``: rows attended to while writing, mean over steps, layers and KV heads. ``budget``,
          ``capacity``: rows. ``kv_bytes``: K and V as allocated, with room for the longer of pp and tg.
    """
    with Llama(cell.model, **cell.options) as llama:
        engine = llama.engine
        n_ubatch = engine.config.n_ubatch
        text = tokenize_text(llama.native, cell.depth + max(cell.n_prompt, cell.n_gen, n_ubatch))
        prompt, rest = text[: cell.depth], text[cell.depth :]
        guide = _tokenize_guide(llama) if engine.policy.evicts and not cell.shifts else []
        if guide and len(guide) < cell.depth:
            prompt[-len(guide) :] = guide
        profile = Profile(llama.native)

        engine.open(cell.depth, max(cell.n_prompt, cell.n_gen), 0)
        budget = engine.budget
        # Pages of weights and threads: as llama-bench does, and as the second prompt of a session finds them.
        engine.read(text[:n_ubatch])
        engine.step(text[0])
        engine.clear()
        read: Callable[[Sequence[int]], None] = partial(engine.read, guide=guide)
        step = engine.step
        if cell.shifts:
            shift = ContextShift(engine)
            read, step = shift.read, shift.step

        profile.start()
        start = time.perf_counter()
        read(prompt)
        ttft_s = time.perf_counter() - start if prompt else None
        reading = profile.stop()
        counters = replace(engine.counters)

        steps, rows = [], []
        profile.start()
        for token in rest[: cell.n_gen]:
            start = time.perf_counter()
            step(token)
            steps.append(time.perf_counter() - start)
            rows.append(engine.rows.mean)
        writing = profile.stop()

        _go_back(engine, cell.n_gen, partial(read, prompt), n_events=counters.events)
        start = time.perf_counter()
        read(rest[: cell.n_prompt])
        pp_s = time.perf_counter() - start
        return {
            "ttft_s": ttft_s,
            "pp_s": pp_s,
            "tg_s": sum(steps),
            "step_ms": statistics.median(steps) * 1e3,
            "events": counters.events,
            "score_ms": counters.score_ms,
            "compact_ms": counters.compact_ms,
            "guide_ms": counters.guide_ms,
            "reading": reading,
            "writing": writing,
            "rows": statistics.fmean(rows),
            "budget": budget,
            "capacity": engine.capacity,
            "kv_bytes": engine.kv_report()["bytes"],
        }


def _tokenize_guide(llama: Llama) -> list[int]:
    guide = llama.config.guide
    if guide == "off":
        return []
    question = QUESTION if guide == DEFAULTS.guide else guide
    return llama.native.tokenize(question, add_special=False)


def _go_back(engine: Engine, n: int, read_again: Callable[[], None], *, n_events: int) -> None:
    """Bring the cache back to where the prompt ended, ``n`` tokens ago, as far as that makes a difference."""
    if not engine.policy.evicts:
        engine.native.remove_tail(n)
        engine.rows.drop_tail(n)
        engine.counters.seen -= n
    elif n_events == 0:
        # Nothing had been evicted: the prompt is short, or memory is large.
        engine.clear()
        read_again()
    # Else it goes on as after a longer prompt: how many tokens it saw before costs nothing.
