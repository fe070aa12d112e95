"""One sequence in a bounded cache: read chunk by chunk, evict before it is full, count everything."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import psutil

from restkv_local.allocators.base import Demand, check_allocation
from restkv_local.allocators.devices import fit_devices
from restkv_local.allocators.registry import check_pair, make_allocator
from restkv_local.cache_size import check_memory, size_cache, size_segments
from restkv_local.config import Config
from restkv_local.device_factors import DeviceFactors
from restkv_local.errors import ConfigError, NativeError, PlanError
from restkv_local.model.model_file import (
    ModelShape,
    kv_bytes_per_token,
    pad_rows,
    supported_positions,
)
from restkv_local.native import FAILED, NativeContext
from restkv_local.observe import attended, observe_native, observe_nothing, observe_numpy
from restkv_local.planning import plan_eviction, protect_rows, rankable
from restkv_local.policies.base import Policy, observes_attention
from restkv_local.policies.registry import make_policy
from restkv_local.row_table import RowTable
from restkv_local.sequence import Counters, EvictionEvent, OnProgress, Progress, Snapshot
from restkv_local.tracking import Tracking
from restkv_local.types import (
    F32,
    F64,
    Bool,
    EvictionPlan,
    Observation,
    ObservationRequest,
    Tracked,
)

T = TypeVar("T")

# Fewer tokens are not worth a chunk of their own: what every chunk costs once would weigh more than an eviction saved.
_MIN_CHUNK = 128


@dataclass(frozen=True, slots=True)
class Probing:
    """What a probe is read behind: so many slots in use, and the logits of the text's last token if there are any."""

    n_used: int
    logits: F32 | None


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
    also_track : iterable of Tracked
        What other policies than the configured one will want (:meth:`use`).
    policy : Policy, optional
        One with knobs of its own, instead of what ``config`` names.

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
        also_track: Iterable[Tracked] = (),
        policy: Policy | None = None,
    ) -> None:
        self.native = native
        self.shape = shape
        self.config = config
        self.policy = policy or make_policy(config.policy, config)
        # The policy is what the options say, without knobs of its own.
        self.is_configured = policy is None
        self._allocator = make_allocator(config.allocation)
        self._is_ragged = not self._allocator.equal
        check_pair(self._allocator, self.policy)
        _check_repetition(self.policy)
        self._on_evict = on_evict
        if config.n_guide > config.n_ubatch:
            raise ConfigError(
                f"n_guide must be at most n_ubatch, the most tokens read at once; "
                f"got n_guide={config.n_guide}, n_ubatch={config.n_ubatch}"
            )
        self._check_guide()
        self.positions = config.positions
        if self.positions == "auto":
            # Compact answers best past the trained length; where keys cannot be re-rotated, original it is.
            self.positions = "compact" if "compact" in self._supported() else "original"
        self.budget = 0
        self.n_pinned = 0
        self.counters = Counters()
        self._factors = DeviceFactors(native, shape, on_host=config.scoring == "numpy")
        self._tracking = Tracking(native, {self.policy.track, *also_track}, config.n_ubatch)
        self.rows = RowTable(0, 0, 0)
        self._probing: Probing | None = None
        # Newest queries that are kept: those that judge, and those that tracked figures lack.
        self._n_ring = max(config.n_obs + config.n_guide, config.n_ubatch if self.tracks else 1)
        self._guide: list[int] = []

    def _check_guide(self) -> None:
        if self.config.guide in ("auto", "off"):
            return
        n_tokens = len(self.native.tokenize(self.config.guide, add_special=False))
        if n_tokens > self.config.n_guide:
            raise ConfigError(
                f"guide has {n_tokens} tokens and n_guide={self.config.n_guide} is how many are read;"
                " shorten it or raise n_guide"
            )

    def _supported(self) -> tuple[str, ...]:
        return supported_positions(self.shape, type_k=self.config.type_k)

    @property
    def guide(self) -> list[int]:
        """The question, as tokens: read as a probe before each eviction, so that its queries choose the rows."""
        return self._guide

    @guide.setter
    def guide(self, tokens: Sequence[int]) -> None:
        n = self.config.n_guide
        self._guide = list(tokens)[-n:] if n else []

    @property
    def is_open(self) -> bool:
        """Whether there is a cache, all of it: Ctrl-C may have come while it was made."""
        return self.native.capacity > 0 and self.rows.n_slots > 0

    @property
    def tracks(self) -> frozenset[Tracked]:
        """Figures of earlier queries that are kept."""
        return self._tracking.kinds

    @property
    def capacity(self) -> int:
        """Rows a segment can hold, on average."""
        return self.native.capacity

    @property
    def made(self) -> tuple[int, int, int]:
        """What a reading depends on: the cache's rows, those an eviction leaves, those that none may touch."""
        return self.capacity, self.budget, self.n_pinned

    @property
    def n_repeat(self) -> int:
        """Rows that the next repetition takes, 0 where nothing is repeated."""
        return self._tracking.n_repeat

    @property
    def _n_probe(self) -> int:
        """Rows that any probe takes."""
        n_guide = 0 if self.config.guide == "off" else self.config.n_guide
        return max(n_guide, self.n_repeat)

    @property
    def _room(self) -> int:
        """Rows to fill before the next eviction: what a cache made for the budget has, less those for a probe.

        The cache that is open may have been made for a larger budget, and the next guide may be longer than this one.
        """
        n_rows = pad_rows(self.budget + self.config.n_ubatch + self._n_probe)
        n_ahead = self._n_probe if observes_attention(self.policy) else self.n_repeat
        return min(self.native.room, n_rows - math.ceil(self.rows.mean)) - n_ahead

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
        budget, n_rows = self.check(n_prompt, n_predict, n_pinned)
        if not self._fits(n_rows):
            self._make_cache(n_rows)
        self.budget, self.n_pinned = budget, n_pinned
        self._factors.load(self._sample_request(self.policy))

    def check(self, n_prompt: int, n_predict: int, n_pinned: int) -> tuple[int, int]:
        """Return the budget and the rows that :meth:`open` would give a prompt; nothing changes.

        Raises
        ------
        ConfigError
            If the budget does not hold what must stay, or the machine does not hold the cache.
        """
        budget, n_rows = size_cache(
            self.config,
            self.shape,
            n_prompt,
            self.config.n_predict if n_predict < 0 else n_predict,
            n_pinned,
            evicts=self.policy.evicts,
            n_probe=self._n_probe,
            n_repeat=self.n_repeat,
        )
        if not self._fits(n_rows):
            # The cache that this one replaces goes first.
            n_freed = sum(self.native.held.values()) if self.native.capacity > 0 else 0
            check_memory(
                self.config,
                self.shape,
                n_rows,
                n_slots=size_segments(self.config, n_rows, equal=not self._is_ragged),
                n_ring=self._n_ring,
                n_threads=self._n_threads,
                n_freed=n_freed,
                evicts=self.policy.evicts,
                offloads=self.native.offloads,
            )
        return budget, n_rows

    @property
    def _n_threads(self) -> int:
        return self.config.n_threads or psutil.cpu_count(logical=False) or 1

    def _fits(self, n_rows: int) -> bool:
        """Whether the open cache is what a prompt wants."""
        return self.is_open and self.capacity == n_rows

    def _sample_request(self, policy: Policy) -> ObservationRequest | None:
        """Return what a policy asks for at an eviction, however many rows there will be."""
        return policy.request(self.config.n_obs, 0, 1)

    def _make_cache(self, n_rows: int) -> None:
        config = self.config
        self.rows = RowTable(0, 0, 0)  # until all is there: Ctrl-C may come at any moment
        self._factors.forget()
        n_slots = size_segments(config, n_rows, equal=not self._is_ragged)
        self.native.open(
            n_rows,
            n_slots=None if n_slots == n_rows else n_slots,
            n_ring=self._n_ring,
            n_ubatch=config.n_ubatch,
            n_threads=self._n_threads,
            type_k=config.type_k,
            type_v=config.type_v,
            unturned=[il for il, nope in enumerate(self.shape.nope_layers) if nope],
        )
        self.clear()
        layers = self.native.layers
        self.rows = RowTable(len(layers), layers[0].n_head_kv, n_slots, self.tracks)

    def clear(self) -> None:
        """Forget the sequence and its guide; the memory stays."""
        self.native.finish(self._clear)

    def _clear(self) -> None:
        self.native.clear()
        self._probing = None
        self.guide = []
        self.rows.clear()
        self._tracking.clear()
        self.counters = Counters()

    def renewed(self, config: Config, also_track: Iterable[Tracked] = ()) -> Engine:
        """Return an engine over the same model with other options; once it is opened, this one is done.

        What this one tracks, the new one tracks too, so that it can :meth:`restore` its snapshots. A policy with
        knobs of its own stays, unless the options name another.
        """
        keeps = not self.is_configured and config.policy == self.policy.name
        return Engine(
            self.native,
            self.shape,
            config,
            self._on_evict,
            self.tracks | frozenset(also_track),
            self.policy if keeps else None,
        )

    @property
    def rules(self) -> dict[str, Any]:
        """What :meth:`use` takes to evict as now."""
        policy = self.policy.name if self.is_configured else self.policy
        return {
            "policy": policy, "allocation": self.config.allocation, "budget": self.budget,
        }  # fmt: skip

    def use(
        self,
        *,
        policy: str | Policy | None = None,
        allocation: str | None = None,
        budget: int | None = None,
    ) -> None:
        """Evict by other rules from now on.

        Parameters
        ----------
        policy : str or Policy, optional
            A name, built with the session's options, or a policy with knobs of its own.
        allocation : str, optional
            A name.
        budget : int, optional
            Rows.

        Raises
        ------
        ConfigError
            If the policy needs figures of earlier queries that were not tracked, or the allocation unequal
            segments in a cache that was opened for equal ones.
        """
        chosen = policy or self.policy
        if isinstance(chosen, str):
            chosen = make_policy(chosen, self.config)
        allocator = self._allocator if allocation is None else make_allocator(allocation)
        check_pair(allocator, chosen)
        _check_repetition(chosen)
        if chosen.track != "none" and chosen.track not in self.tracks:
            raise ConfigError(
                f"policy={chosen.name!r} needs figures of every query so far, which were not tracked;"
                " name it before the first token is read"
            )
        if not allocator.equal and self.is_open and self.rows.n_slots == self.capacity:
            raise ConfigError(
                f"allocation={allocation!r} needs segments that may grow, and this cache was opened for"
                " equal ones; name it before the first token is read"
            )
        if self.is_open:
            self._factors.load(self._sample_request(chosen))
        self.policy, self._allocator = chosen, allocator
        # Rows that are unequal already stay so until the next eviction, wherever they go meanwhile.
        self._is_ragged = self._is_ragged or not allocator.equal
        if policy is not None:
            self.is_configured = isinstance(policy, str)
        if budget is not None:
            self.budget = budget
        self.config = replace(
            self.config,
            policy=chosen.name,
            allocation=allocation or self.config.allocation,
        )

    def save(self) -> Snapshot:
        """Copy the sequence; :meth:`restore` goes on from there as if nothing had happened since."""
        self._settle()
        self._track()
        return Snapshot(
            self.native.state(),
            self.rows.snapshot(),
            replace(self.counters),
            copy(self._tracking.moments),
            copy(self._tracking.repetition),
        )

    def make_way(self, snapshot: Snapshot) -> None:
        """Let the next :meth:`open` make a cache that can hold a snapshot, whose KV heads may have unequal rows."""
        self._is_ragged = self._is_ragged or bool((snapshot.rows.positions < 0).any())

    def try_save(self) -> Snapshot | None:
        """Return what :meth:`save` does; None where layers with a sliding window have a cache of their own."""
        return None if self.native.held["other"] else self.save()

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to what :meth:`save` copied in this session."""
        self.native.finish(lambda: self._restore(snapshot))

    def _restore(self, snapshot: Snapshot) -> None:
        if not self.rows.fits(snapshot.rows, self.native.state_rows(snapshot.state)):
            raise NativeError(
                "this state contradicts the table of its rows: it was changed by hand"
            )
        try:
            self.native.set_state(snapshot.state)
        except NativeError as error:
            if error.status == FAILED:
                self._clear()
            raise
        self._probing = None
        self.rows.restore(snapshot.rows)
        self.counters = replace(snapshot.counters)
        self._tracking.restore(snapshot.moments, snapshot.repetition)

    # Reading

    def read(
        self,
        tokens: Sequence[int],
        *,
        guide: Sequence[int] = (),
        evict: bool = True,
        cut: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Read a prompt within the budget; logits of its last token are ready afterwards.

        Parameters
        ----------
        tokens : sequence of int
            Tokens that follow what the cache holds.
        guide : sequence of int
            The end of the prompt that says what matters: the :attr:`guide` from now on, in the answer too. Empty:
            the newest queries choose.
        evict : bool
            False: leave everything in place, for :meth:`plan` to look at.
        cut : bool
            End at the budget in any case, not after several evictions only.
        on_progress : callable, optional
            Called after each chunk.

        Raises
        ------
        CacheFullError
            If nothing may be evicted and the text does not fit.
        KeyboardInterrupt
            On Ctrl-C. The chunks read so far stay: ``counters.seen`` tells how many tokens.
        """
        self._settle()
        start = time.perf_counter()
        evict = evict and self.policy.evicts
        self.guide = guide
        n_events = self.counters.events
        done = 0
        while done < len(tokens):
            n = min(self.config.n_ubatch, len(tokens) - done)
            if evict and self.config.prefill == "bounded":
                n = self._make_room(n)
            self._decode(list(tokens[done : done + n]))
            done += n
            if on_progress is not None:
                seconds = time.perf_counter() - start
                on_progress(Progress(done, len(tokens), seconds, self.counters.events))
        if not evict or self.rows.mean <= self.budget:
            return
        if self.config.prefill == "full":
            # Evicted once by its own newest queries: the papers' protocol, and their rule.
            self.evict()
        elif cut or self.counters.events > n_events + 1:
            # What was promised, and an answer is written the faster the fewer rows there are to look at. After a
            # single eviction, as turns of a conversation take, one more would cost too much of what was asked before.
            self._evict_read(tokens)

    def _make_room(self, n: int) -> int:
        """Return how many of the next ``n`` tokens to read now; evict if too few fit.

        Rows that rounding has added to the cache are filled too: the fewer evictions, the less they cost.
        """
        room = self._room
        if n <= room:
            return n
        # After Ctrl-C in a chunk there may be nobody to ask which rows matter.
        if room >= _MIN_CHUNK or (room > 0 and not self.can_evict):
            return room
        self._evict_guided()
        return n

    def step(self, token: int) -> None:
        """Append one generated token; evict first if the room for an answer is used up."""
        self._settle()
        if self.policy.evicts and self._room < 1:
            # The answer so far asks for particular rows too.
            self._evict_guided(n_more=self.config.n_obs)
        self._decode([token])

    def _decode(self, tokens: list[int], *, probe: bool = False) -> None:
        n = len(tokens)
        if self._tracking.n_behind + n > self._n_ring:
            self._track()
        try:
            self.native.decode(tokens, probe=probe)
            self.native.finish(lambda: self._count(tokens, probe=probe))
        except KeyboardInterrupt:
            # It may have come between the two.
            self.native.finish(lambda: self.native.remove_tail(self.native.used - self.rows.used))
            raise
        except NativeError:
            self._clear_if_broken()
            raise

    def _clear_if_broken(self) -> None:
        """Forget the sequence where memory ended in the middle of a change: nobody knows what the cache holds."""
        try:
            is_whole = self.native.used == self.rows.used
        except NativeError:
            is_whole = False
        if not is_whole:
            self._clear()

    def _count(self, tokens: list[int], *, probe: bool) -> None:
        n = len(tokens)
        self.rows.append(self.counters.seen, n)
        self.counters.peak = max(self.counters.peak, round(self.rows.mean))
        if not probe:
            self.counters.seen += n
            self._tracking.append(tokens)

    def _track(self) -> None:
        self._tracking.catch_up(self.rows, self.counters.seen)

    def repeat(self) -> None:
        """Have repeated what was read since the last time and still has a row.

        The newest queries are no longer observed after it.
        """
        repetition = self._tracking.repetition
        if repetition is None or self.policy.track != "repeat":
            return
        if not repetition.pending:
            return
        self._track()
        seen = self.counters.seen
        held = np.isin(np.arange(seen - len(repetition.pending), seen), self.rows.positions)
        while repetition.pending:
            tokens, n, n_passed = repetition.probe(held)
            if n > 0:
                self._probe(
                    tokens, partial(self._tracking.add_repeated, self.rows, self.counters.seen, n)
                )
            repetition.advance(n_passed)
            held = held[n_passed:]

    def evict(self) -> None:
        """Evict to the budget now, by the newest ``n_obs`` queries."""
        self._settle()
        self._evict(self._n_window(self.config.n_obs))

    @property
    def can_evict(self) -> bool:
        """Whether there are queries that :meth:`evict` could go by, or the policy asks for none."""
        request = self._sample_request(self.policy)
        return self.native.n_observed > 0 or request is None or not request.needs_window

    @property
    def can_go_on(self) -> bool:
        """Whether an eviction could come before the next token: by queries that are there, or by a probe that fits."""
        room = self.native.room
        by_queries = not self.policy.evicts or self.can_evict
        return room >= self.n_repeat and (by_queries or room >= self._n_probe)

    def _n_window(self, wanted: int) -> int:
        n_observed = self.native.n_observed
        if not self.can_evict:
            raise NativeError("no observed query is valid: read tokens before evicting")
        return min(wanted, n_observed)

    # Evicting

    def _evict_guided(self, n_more: int = 0) -> None:
        """Evict by the guide's queries and the ``n_more`` before them; without a guide by the newest.

        Where those are an answer's, they are taken for a question's.
        """
        n_guide = len(self._guide)
        # A policy that reads no guide may have left no room for the one that follows it.
        fits = n_guide <= self.native.room
        if not n_guide or not fits or not observes_attention(self.policy):
            asks = n_more > 0 and self.config.guide != "off"
            self._evict(self._n_window(self.config.n_obs), guided=asks)
            return
        self._track()  # before the probe's queries stand among the newest
        n_more = min(n_more, self.native.n_observed)
        start = time.perf_counter()

        def decide() -> tuple[EvictionPlan, float, float]:
            guide_ms = (time.perf_counter() - start) * 1e3
            return *self._plan_timed(n_guide + n_more, guided=True, n_probe=n_guide), guide_ms

        self._carry_out(*self._probe(self._guide, decide))

    def _evict_read(self, tokens: Sequence[int]) -> None:
        """Evict after the last of a prompt's tokens."""
        n_guide = len(self._guide)
        # Where the question ends the prompt, its queries are there.
        is_read = n_guide and list(tokens[-n_guide:]) == self._guide
        if is_read and n_guide <= self.native.n_observed:
            self._evict(n_guide, guided=True)
        else:
            self._evict_guided()

    def _probe(self, tokens: Sequence[int], look: Callable[[], T]) -> T:
        """Do something while tokens are in the cache that are no part of the text; then the text's logits count."""
        # An answer may begin right after. There are none when a snapshot has just been restored.
        self._probing = Probing(self.rows.used, copy(self.native.find_logits()))
        try:
            self._decode(list(tokens), probe=True)
            return look()
        finally:
            self._end_probe()

    def _settle(self) -> None:
        """Drop what Ctrl-C left: tokens that nobody counted, a probe that was over."""
        if self.native.used > self.rows.used:
            self.native.finish(lambda: self.native.remove_tail(self.native.used - self.rows.used))
        self._end_probe()

    def _end_probe(self) -> None:
        if self._probing is not None:
            self.native.finish(self._drop_probe)

    def _drop_probe(self) -> None:
        probing, self._probing = self._probing, None
        assert probing is not None, "asked before"
        n_probe = self.rows.used - probing.n_used
        if n_probe == 0:
            return
        self.native.remove_tail(n_probe)
        self.rows.drop_tail(n_probe)
        if probing.logits is not None:
            self.native.logits()[:] = probing.logits

    def _evict(self, n_window: int, *, guided: bool = False) -> None:
        """Score all rows by the newest ``n_window`` queries, keep the budget."""
        start = time.perf_counter()
        self.repeat()
        repeat_ms = (time.perf_counter() - start) * 1e3
        plan, score_ms = self._plan_timed(n_window, guided=guided)
        self._carry_out(plan, score_ms, repeat_ms)

    def _plan_timed(
        self, n_window: int, *, guided: bool, n_probe: int = 0
    ) -> tuple[EvictionPlan, float]:
        start = time.perf_counter()
        plan = self.plan(n_window, guided=guided, n_probe=n_probe)
        return plan, (time.perf_counter() - start) * 1e3

    def _carry_out(self, plan: EvictionPlan, score_ms: float, guide_ms: float) -> None:
        # Rows and what is known of them change together or not at all.
        event = self.native.finish(lambda: self._apply(plan, score_ms, guide_ms))
        if self._on_evict is not None:
            self._on_evict(event)

    def _apply(self, plan: EvictionPlan, score_ms: float, guide_ms: float) -> EvictionEvent:
        counters = self.counters
        start = time.perf_counter()
        used = round(self.rows.mean)
        position = self.native.position
        before = self.rows.snapshot()
        try:
            shift = self.rows.keep(plan)
            if self.positions == "compact":
                self.native.compact(plan.keep, shift, self.rows.used - 1)
            else:
                self.native.compact(plan.keep, None, position)
        except BaseException as error:
            if isinstance(error, NativeError) and error.status == FAILED:
                self._clear()  # in the middle: nobody knows which rows have moved
            else:
                self.rows.restore(before)
            raise
        compact_ms = (time.perf_counter() - start) * 1e3

        counters.events += 1
        counters.score_ms += score_ms
        counters.compact_ms += compact_ms
        counters.guide_ms += guide_ms
        kept = round(self.rows.mean)
        return EvictionEvent(counters.seen, used, kept, score_ms, compact_ms, guide_ms)

    def plan(self, n_window: int, *, guided: bool = False, n_probe: int = 0) -> EvictionPlan:
        """Decide what an eviction would keep; every row stays.

        What the policy tracks is brought up to date first, so that kvzip has the text repeated.

        Parameters
        ----------
        n_window : int
            Newest queries to observe.
        guided : bool
            Whether they are a question.
        n_probe : int
            Newest rows that will go in any case.
        """
        if n_probe == 0:
            self._settle()
            self._track()
            self.repeat()
        config = self.config
        policy = self.policy.guided() if guided else self.policy
        n_kv = self.rows.used - n_probe
        present = self.rows.positions[:, :, :n_kv] >= 0
        n_sink = config.n_sink if policy.keeps_sinks else 0
        protected = protect_rows(
            n_kv,
            n_sink=n_sink,
            n_recent=config.n_recent,
            n_pinned=max(0, self.n_pinned - n_sink),
            n_absent=self.rows.n_absent,
        )
        observations = self._observe(policy, n_window, present)
        scores = rankable(
            np.stack([_score(policy, observation)[:, :n_kv] for observation in observations])
        )
        demand = Demand(
            budget=self.budget,
            n_rows=n_kv - self.rows.n_absent,
            candidates=present & ~protected,
            n_most=self.rows.n_slots - config.n_ubatch - self._n_probe,
            scores=scores,
            observations=observations,
            comparable=policy.comparable,
        )
        devices = [layer.device for layer in self.native.layers]
        wanted = self._allocator.allocate(demand)
        check_allocation(wanted, demand, self._allocator.name)
        allocation = fit_devices(wanted, demand, devices)
        n_select = np.maximum(allocation - demand.least, 0)
        for i, observation in enumerate(observations):
            scores[i] = policy.rerank(scores[i], observation, demand.candidates[i], n_select[i])
        return plan_eviction(scores, allocation, protected, present)

    def _observe(self, policy: Policy, n_window: int, present: Bool) -> list[Observation]:
        positions = self.rows.positions
        event = self.counters.events
        # Ranks that exist in every KV head.
        n_select = max(1, self.budget - self.config.n_recent)
        n_select = min(n_select, int(np.count_nonzero(present, axis=-1).min()))
        request = policy.request(n_window, int(positions.max()), n_select)
        tracked = self.rows.figures(policy.track)
        moments = self._tracking.moments if policy.track == "queries" else None
        if request is None:
            return observe_nothing(positions, event, tracked)
        self._factors.load(request)
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

    def attended(self, n: int) -> F64:
        """Where the newest ``n`` queries looked, or as many of them as are observed.

        Returns
        -------
        ndarray of shape (seen,), float64
            For each token of the sequence; see :func:`~restkv_local.observe.attended`.
        """
        self._settle()
        n = min(n, self.native.n_observed)
        if n <= 0:
            return np.zeros(self.counters.seen)
        return attended(self.native, n, self.counters.seen, self.rows.positions)

    def kv_report(self) -> dict[str, Any]:
        """Return the ``kv`` object of the JSON report."""
        counters = self.counters
        row_bytes = kv_bytes_per_token(self.shape, self.config.type_k, self.config.type_v)
        held = self.native.held
        return {
            "policy": self.config.policy,
            "allocation": self.config.allocation,
            "prefill": self.config.prefill,
            "positions": self.positions,
            "budget": self.budget,
            "capacity": self.capacity,
            "peak": counters.peak,
            "seen": counters.seen,
            "kept": round(self.rows.mean),
            "evicted": counters.seen - round(self.rows.mean),
            "events": counters.events,
            "score_ms": round(counters.score_ms, 3),
            "compact_ms": round(counters.compact_ms, 3),
            "guide_ms": round(counters.guide_ms, 3),
            "bytes": sum(held.values()) - held["scoring"],
            "bytes_full": counters.seen * row_bytes + held["other"],
        }


def _check_repetition(policy: Policy) -> None:
    """Refuse a policy that wants the text repeated and looks at the newest queries, which are the repetition's then."""
    if policy.track == "repeat" and observes_attention(policy):
        raise ConfigError(
            f"policy={policy.name!r} tracks 'repeat' and asks for the attention of the newest queries, which are a"
            " repetition's then; let its request be None, or track something else"
        )


def _score(policy: Policy, observation: Observation) -> F32:
    scores = policy.score(observation)
    if np.shape(scores) != observation.positions.shape:
        raise PlanError(
            f"policy={policy.name!r} must return scores of shape (n_head_kv, n_kv) ="
            f" {observation.positions.shape}; got {np.shape(scores)}"
        )
    return scores
