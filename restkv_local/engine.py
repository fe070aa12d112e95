"""One sequence in a bounded cache: read chunk by chunk, evict before it is full, count everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil

from restkv_local.allocators.base import Demand
from restkv_local.allocators.registry import make_allocator
from restkv_local.config import Config, check_budget, parse_budget, resolve_budget
from restkv_local.errors import ConfigError, NativeError
from restkv_local.model_file import (
    ROW_PAD,
    ModelShape,
    kv_bytes_per_token,
    pad_rows,
    supported_positions,
    swa_cache_bytes,
)
from restkv_local.native import NativeContext
from restkv_local.observe import (
    QueryMoments,
    observe_native,
    observe_nothing,
    observe_numpy,
    track_native,
)
from restkv_local.output_factors import fold_v_rotation, load_output_factors
from restkv_local.planning import plan_eviction, protect_rows, rankable
from restkv_local.policies.base import Policy
from restkv_local.policies.registry import make_policy
from restkv_local.types import F32, I32, Bool, EvictionPlan, Observation

# A segment may grow to this many times the average at the others' expense.
_GROWTH = 4


@dataclass(frozen=True, slots=True)
class Progress:
    """How far reading is: tokens processed of total, seconds so far, evictions so far."""

    processed: int
    total: int
    seconds: float
    events: int


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


class Engine:
    """Reads and generates tokens of one sequence within a budget.

    Parameters
    ----------
    native : NativeContext
        A loaded model; the engine opens its context when it knows the prompt.
    shape : ModelShape
        Its header, already checked.
    config : Config
        Every option.
    on_evict : callable, optional
        Called with an :class:`EvictionEvent` after each eviction.

    Raises
    ------
    ConfigError
        If an option does not fit the model or another option.
    """

    def __init__(
        self,
        native: NativeContext,
        shape: ModelShape,
        config: Config,
        on_evict: Callable[[EvictionEvent], None] | None = None,
    ) -> None:
        self.native = native
        self.shape = shape
        self.config = config
        self.policy = make_policy(config.policy, config)
        self._allocator = make_allocator(config.allocation)
        self._on_evict = on_evict
        if config.n_guide > config.n_ubatch:
            raise ConfigError(
                f"n_guide must be at most n_ubatch, the most tokens read at once; "
                f"got n_guide={config.n_guide}, n_ubatch={config.n_ubatch}"
            )
        self.positions = config.positions
        if self.positions == "auto":
            # Compact answers best past the trained length; where keys cannot be re-rotated, original it is.
            self.positions = "compact" if "compact" in self._supported() else "original"
        self.budget = 0
        self.n_pinned = 0
        self.counters = Counters()
        self._factors: dict[int, F32] = {}
        # Of every slot, valid up to `used`: true position, -1 where a KV head has no row, and what
        # the policy tracks. Shape (n_layer, n_head_kv, n_slots).
        self._rows: I32 = np.zeros((0, 0, 0), np.int32)
        self._tracked: F32 = np.zeros((0, 0, 0), np.float32)
        self._moments = QueryMoments()
        self._n_untracked = 0  # newest queries that the tracked figures lack
        self._n_ring = 0
        self.used = 0

    def _supported(self) -> tuple[str, ...]:
        return supported_positions(self.shape, type_k=self.config.type_k)

    @property
    def is_open(self) -> bool:
        """Whether a context exists."""
        return self.native.capacity > 0

    @property
    def capacity(self) -> int:
        """Rows a segment can hold."""
        return self.native.capacity

    @property
    def true_positions(self) -> I32:
        """True positions of the slots in use, shape (n_layer, n_head_kv, used), -1 without a row: a view."""
        return self._rows[:, :, : self.used]

    @property
    def n_rows(self) -> I32:
        """Rows in use of each layer and KV head: (n_layer, n_head_kv)."""
        rows: I32 = np.count_nonzero(self.true_positions >= 0, axis=-1).astype(np.int32)
        return rows

    # Opening

    def open(self, n_prompt: int, n_predict: int, n_pinned: int) -> None:
        """Make the cache for a prompt; a budget in rows or bytes keeps the one that is open.

        Parameters
        ----------
        n_prompt, n_predict : int
            Tokens to read and to generate at most (-1: unknown).
        n_pinned : int
            First tokens that no eviction may touch (the system prompt).

        Raises
        ------
        ConfigError
            If the budget does not hold what must stay, or the machine does not hold the cache.
        """
        config = self.config
        n_guide = 0 if config.guide == "off" else config.n_guide
        n_reserve = config.n_ubatch + n_guide
        row_bytes = kv_bytes_per_token(self.shape, config.type_k, config.type_v)
        spec = parse_budget(config.budget)
        self.budget = resolve_budget(spec, row_bytes, n_reserve, n_prompt, ROW_PAD)
        self.n_pinned = n_pinned
        n_rows = self.budget + n_reserve
        whole = n_prompt + (config.n_predict if n_predict < 0 else n_predict) + 1
        if not self.policy.evicts:
            n_rows = max(whole, n_rows)
        else:
            check_budget(
                self.budget,
                n_sink=config.n_sink,
                n_recent=config.n_recent,
                n_pinned=max(0, n_pinned - config.n_sink),
            )
            if config.prefill == "full":
                n_rows = max(whole, n_rows)
        n_rows = pad_rows(n_rows)
        if self.is_open and self.capacity == n_rows:
            return
        self._check_memory(n_rows, row_bytes)
        n_slots = n_rows if self._allocator.equal else _GROWTH * n_rows
        self._n_ring = max(config.n_obs, config.n_guide, 1)
        if self.policy.track != "none":
            self._n_ring = max(self._n_ring, config.n_ubatch)
        self.native.open(
            n_rows,
            n_slots=None if self._allocator.equal else n_slots,
            n_ring=self._n_ring,
            n_ubatch=config.n_ubatch,
            n_threads=config.n_threads or psutil.cpu_count(logical=False) or 1,
            type_k=config.type_k,
            type_v=config.type_v,
        )
        layers = self.native.layers
        self._rows = np.zeros((len(layers), layers[0].n_head_kv, n_slots), np.int32)
        self._tracked = np.zeros(self._rows.shape, np.float32)
        self.clear()
        self._load_factors()

    def _check_memory(self, n_rows: int, row_bytes: int) -> None:
        need = n_rows * row_bytes + swa_cache_bytes(
            self.shape, self.config.n_ubatch, self.config.type_k, self.config.type_v
        )
        free = psutil.virtual_memory().available
        # On a GPU the backend refuses by itself; on a CPU the system would kill the process.
        if self.config.n_gpu_layers == 0 and need > free:
            raise ConfigError(
                f"{n_rows} rows need {need / 2**30:.1f} GiB for K and V but {free / 2**30:.1f} GiB are free; "
                f"lower budget={self.config.budget} or quantise the cache (type_k, type_v = q8_0)"
            )

    def _load_factors(self) -> None:
        request = self.policy.request(self.config.n_obs, 0, 1)
        if request is None or (request.distance == "none" and not request.value_norm):
            return
        if request.project:
            source: Iterator[tuple[int, F32]] = load_output_factors(self.shape)
        else:
            identity = np.eye(self.native.layers[0].head_dim_v, dtype=np.float32)
            source = (
                (layer.il, np.broadcast_to(identity, (layer.n_head, *identity.shape)))
                for layer in self.native.layers
            )
        for i, (il, factors) in enumerate(source):
            assert il == self.native.layers[i].il
            if self.native.v_rotated and request.project:
                factors = fold_v_rotation(factors)
            self.native.set_factors(i, factors)
            if self.config.scoring == "numpy":
                self._factors[i] = factors

    def clear(self) -> None:
        """Forget the sequence; the memory stays."""
        self.native.clear()
        self.used = 0
        self._n_untracked = 0
        self._moments = QueryMoments()
        self.counters = Counters()

    # Reading

    def read(
        self,
        tokens: Sequence[int],
        *,
        guide: Sequence[int] = (),
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Read a prompt within the budget; logits of its last token are ready afterwards.

        Parameters
        ----------
        tokens : sequence of int
            Tokens that follow what the cache holds.
        guide : sequence of int
            The end of the prompt that says what matters: read as a probe before each eviction, so that the
            queries of the question choose the rows. Empty: the newest queries choose.
        on_progress : callable, optional
            Called after each chunk.

        Raises
        ------
        KeyboardInterrupt
            On Ctrl-C. The chunks read so far stay: ``counters.seen`` tells how many tokens.
        """
        start = time.perf_counter()
        evicting = self.policy.evicts and self.config.prefill == "bounded"
        guide = list(guide)[-self.config.n_guide :] if self.config.n_guide else []
        for first in range(0, len(tokens), self.config.n_ubatch):
            chunk = list(tokens[first : first + self.config.n_ubatch])
            if evicting and len(chunk) + len(guide) > self.native.room:
                self._evict_guided(guide)
            self._decode(chunk)
            if on_progress is not None:
                seconds = time.perf_counter() - start
                done = first + len(chunk)
                on_progress(Progress(done, len(tokens), seconds, self.counters.events))
        # Read whole, evicted once by its own newest queries: the papers' protocol, and their rule.
        if self.policy.evicts and self.config.prefill == "full" and self.used > self.budget:
            self._evict(self._n_window(self.config.n_obs))

    def step(self, token: int) -> None:
        """Append one generated token; evict first if the room for an answer is used up."""
        limit = self.budget + self.config.n_ubatch
        if self.policy.evicts and (self.native.room == 0 or self._mean_rows() + 1 > limit):
            # The window is the question and the answer so far: it asks for particular rows too.
            self._evict(self._n_window(self.config.n_obs), guided=self.config.guide != "off")
        self._decode([token])

    def _mean_rows(self) -> float:
        return float(self.n_rows.mean()) if self.used else 0.0

    def _decode(self, tokens: list[int], *, probe: bool = False) -> None:
        n = len(tokens)
        if self._n_untracked + n > self._n_ring:
            self._track()
        self.native.decode(tokens)
        seen = self.counters.seen
        positions = np.arange(seen, seen + n, dtype=np.int32)
        self._rows[:, :, self.used : self.used + n] = positions
        self._tracked[:, :, self.used : self.used + n] = (
            positions if self.policy.track == "last_use" else 0
        )
        self.used += n
        self.counters.peak = max(self.counters.peak, round(self._mean_rows()))
        if not probe:
            self.counters.seen += n
            self._n_untracked += n

    def _track(self) -> None:
        """Bring what the policy tracks up to date with the newest queries."""
        n, self._n_untracked = self._n_untracked, 0
        if self.policy.track == "none" or n == 0:
            return
        if self.policy.track == "queries":
            self._moments.add(self.native, n)
            return
        tracked = self._tracked[:, :, : self.used]
        track_native(self.native, self.policy.track, n, self.counters.seen, tracked)

    def _n_window(self, wanted: int) -> int:
        n_observed = self.native.n_observed
        if n_observed == 0:
            raise NativeError("no observed query is valid: read tokens before evicting")
        return min(wanted, n_observed)

    # Evicting

    def _evict_guided(self, guide: list[int]) -> None:
        request = self.policy.request(max(len(guide), 1), 0, 1)
        if not guide or request is None or not request.reductions:
            self._evict(self._n_window(self.config.n_obs))
            return
        start = time.perf_counter()
        self._decode(guide, probe=True)
        guide_ms = (time.perf_counter() - start) * 1e3
        try:
            self._evict(len(guide), guided=True, n_probe=len(guide), guide_ms=guide_ms)
        except KeyboardInterrupt:
            self._drop_probe(len(guide))
            raise

    def _drop_probe(self, n_probe: int) -> None:
        self.native.remove_tail(n_probe)
        self.used -= n_probe

    def _evict(
        self, n_window: int, *, guided: bool = False, n_probe: int = 0, guide_ms: float = 0.0
    ) -> None:
        """Score all rows by the newest ``n_window`` queries, drop the probe, keep the budget."""
        counters = self.counters
        start = time.perf_counter()
        self._track()
        plan = self.plan(n_window, guided=guided, n_probe=n_probe)
        score_ms = (time.perf_counter() - start) * 1e3

        start = time.perf_counter()
        if n_probe:
            self._drop_probe(n_probe)
        used = self.used
        source, slot = plan.moves()
        n_slots = int(slot.max()) + 1
        position, shift = self.native.position, None
        if self.positions == "compact":
            position, shift = n_slots - 1, slot - source[-1]
        self.native.compact(plan.keep, shift, position)
        target = (*source[:2], slot)
        rows, tracked = self._rows[source], self._tracked[source]
        self._rows[:, :, :n_slots] = -1
        self._rows[target] = rows
        self._tracked[target] = tracked
        self.used = n_slots
        compact_ms = (time.perf_counter() - start) * 1e3

        counters.events += 1
        counters.score_ms += score_ms
        counters.compact_ms += compact_ms
        counters.guide_ms += guide_ms
        if self._on_evict is not None:
            kept = round(self._mean_rows())
            event = EvictionEvent(counters.seen, used, kept, score_ms, compact_ms, guide_ms)
            self._on_evict(event)

    def plan(self, n_window: int, *, guided: bool = False, n_probe: int = 0) -> EvictionPlan:
        """Decide what an eviction would keep; nothing changes.

        Parameters
        ----------
        n_window : int
            Newest queries to observe.
        guided : bool
            Whether they are a question.
        n_probe : int
            Newest rows that will go in any case.
        """
        config = self.config
        policy = self.policy.guided() if guided else self.policy
        n_kv = self.used - n_probe
        present = self.true_positions[:, :, :n_kv] >= 0
        n_sink = config.n_sink if policy.keeps_sinks else 0
        protected = protect_rows(
            n_kv,
            n_sink=n_sink,
            n_recent=config.n_recent,
            n_pinned=max(0, self.n_pinned - n_sink),
            n_absent=np.count_nonzero(~present, axis=-1),
        )
        observations = self._observe(policy, n_window, present)
        scores = rankable(
            np.stack([policy.score(observation)[:, :n_kv] for observation in observations])
        )
        demand = Demand(
            budget=self.budget,
            n_rows=np.count_nonzero(present, axis=-1).astype(np.int32),
            candidates=present & ~protected,
            n_most=self._rows.shape[-1] - config.n_ubatch - config.n_guide,
            scores=scores,
            observations=observations,
        )
        allocation = self._allocator.allocate(demand)
        n_select = np.maximum(allocation - demand.least, 0)
        for i, observation in enumerate(observations):
            scores[i] = policy.rerank(scores[i], observation, demand.candidates[i], n_select[i])
        return plan_eviction(scores, allocation, protected, present)

    def _observe(self, policy: Policy, n_window: int, present: Bool) -> list[Observation]:
        positions = self.true_positions
        event = self.counters.events
        # Ranks that exist in every KV head.
        n_select = max(1, self.budget - self.config.n_recent)
        n_select = min(n_select, int(np.count_nonzero(present, axis=-1).min()))
        request = policy.request(n_window, int(positions.max()), n_select)
        tracked = self._tracked[:, :, : self.used] if policy.track != "none" else None
        moments = self._moments if policy.track == "queries" else None
        if request is None:
            return observe_nothing(positions, event, tracked)
        if request.reductions:
            extra = [name for name in self._allocator.reductions if name not in request.reductions]
            request = replace(request, reductions=(*request.reductions, *extra))
        if self.config.scoring == "numpy":
            factors = self._factors.__getitem__
            return observe_numpy(
                self.native, request, n_window, positions, event, factors, tracked, moments
            )
        return observe_native(self.native, request, n_window, positions, event, tracked, moments)

    # Reporting

    def kv_report(self) -> dict[str, Any]:
        """Return the ``kv`` object of the JSON report."""
        counters = self.counters
        row_bytes = kv_bytes_per_token(self.shape, self.config.type_k, self.config.type_v)
        allocated = self.native.bytes()
        return {
            "policy": self.config.policy,
            "allocation": self.config.allocation,
            "prefill": self.config.prefill,
            "positions": self.positions,
            "budget": self.budget,
            "capacity": self.capacity,
            "peak": counters.peak,
            "seen": counters.seen,
            "kept": round(self._mean_rows()),
            "evicted": counters.seen - round(self._mean_rows()),
            "events": counters.events,
            "score_ms": round(counters.score_ms, 3),
            "compact_ms": round(counters.compact_ms, 3),
            "guide_ms": round(counters.guide_ms, 3),
            "bytes": allocated["k"] + allocated["v"] + allocated["other"],
            "bytes_full": counters.seen * row_bytes + allocated["other"],
        }
