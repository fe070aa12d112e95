"""The cache of a conversation: what it stands for, copied and put back, moved to another engine or to more room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from restkv_local.engine import Engine
from restkv_local.errors import NativeError
from restkv_local.loaded_model import LoadedModel
from restkv_local.sequence import Snapshot
from restkv_local.storage.snapshot_file import tracked_kinds

Opened = tuple[int, int, int]


class HeldCache:
    """The engine's cache together with the text it stands for.

    Parameters
    ----------
    llama : LoadedModel
        Whose engine fills the cache. Others may use it too: then it stands for nothing here any more.

    Attributes
    ----------
    text : str
        What the cache stands for, if nobody else has used it; :meth:`held` asks.
    opened : tuple of int
        Prompt tokens, answer tokens and pinned tokens it was made for.
    """

    def __init__(self, llama: LoadedModel) -> None:
        self._llama = llama
        self.opened: Opened = (0, 0, 0)
        self.hold("")

    @property
    def engine(self) -> Engine:
        """Who fills it."""
        return self._llama.engine

    def hold(self, text: str) -> None:
        """Note what the cache stands for now."""
        self.text = text
        self._counters = self.engine.counters  # whoever else fills this cache makes new ones
        # Ctrl-C may come between tokens and what is noted of them.
        self._n_seen = self._counters.seen

    def held(self) -> str:
        """Return what the cache stands for: nothing, once it holds tokens that nobody noted here, or was freed."""
        counters = self.engine.counters
        is_ours = counters is self._counters and counters.seen == self._n_seen
        if not is_ours or not self.engine.is_open:
            self.text = ""
        return self.text

    def forget(self) -> None:
        """Drop every row."""

        def forget() -> None:
            if self.engine.is_open:
                self.engine.clear()
            self.hold("")

        self._llama.native.finish(forget)  # Ctrl-C must not come between the two

    def open(self, opened: Opened) -> None:
        """Make an empty cache for a prompt; raises ConfigError as :meth:`Engine.open` does."""
        self.engine.open(*opened)
        self.opened = opened
        self.hold("")

    def snapshot(self) -> Snapshot | None:
        """Copy the cache; None if it is empty or of a kind that cannot be copied."""
        if not self.held() or not self.engine.is_open:
            return None
        return self._llama.native.finish(self.engine.try_save)

    def restore(self, snapshot: Snapshot, text: str) -> bool:
        """Put a cache in place that stands for ``text``; False if the open one cannot take it, or not go on from it."""
        if tracked_kinds(snapshot) != self.engine.tracks:
            return False
        # Somebody else may have freed it, or opened it by rules of theirs.
        self.engine.open(*self.opened)

        def restore() -> None:
            self.engine.restore(snapshot)
            if not self.engine.can_go_on:
                self.engine.clear()
                raise NativeError(
                    "no room is left to have the text repeated, or for a question to choose by"
                )
            self.hold(text)

        try:
            self._llama.native.finish(restore)  # Ctrl-C must not come between the two
        except NativeError:  # more rows than there is room for, or unequal ones
            return False
        return True

    def hand_to(self, engine: Engine) -> None:
        """Let another engine take over, with no cache yet."""
        self._llama.native.release()
        self._llama.engine = engine

    def move_to(self, engine: Engine, opened: Opened, snapshot: Snapshot | None, text: str) -> bool:
        """Let another engine take over and go on from a snapshot; False if it cannot go on from that."""
        self.hand_to(engine)
        if snapshot is not None:
            engine.make_way(snapshot)
        self.open(opened)
        return snapshot is not None and self.restore(snapshot, text)

    def make_room(self, n_tokens: int) -> bool:
        """Move to a larger cache where nothing goes before the tokens are read; False if it came out empty.

        Raises
        ------
        ConfigError
            If the machine does not hold a larger one. Nothing has changed then.
        """
        engine = self.engine
        n_needed = n_tokens + max(engine.config.n_predict + 1, engine.n_repeat)
        may_evict = engine.policy.evicts and engine.config.prefill == "bounded"
        if may_evict or n_needed <= self._llama.native.room:
            return True
        text, (n_prompt, _, n_pinned) = self.text, self.opened
        with self.or_as_before() as snapshot:
            # Twice what is needed: a long conversation moves seldom. The prompt stays that which it began with,
            # because a budget may be a share of it. What cannot be copied is read again, all of it.
            n_held = engine.counters.seen if snapshot is None else round(engine.rows.mean)
            n_rows = 2 * (n_held + n_tokens) + max(engine.config.n_predict, 0)
            self.open((n_prompt, max(n_rows - n_prompt, 0), n_pinned))
            return snapshot is not None and self.restore(snapshot, text)

    @contextmanager
    def or_as_before(self) -> Iterator[Snapshot | None]:
        """Put engine, its rules and cache back as they are if the block fails; yields the cache of now."""
        engine, before, text, opened = self.engine, self.snapshot(), self.text, self.opened
        was_open, n_events, rules = engine.is_open, engine.counters.events, engine.rules
        try:
            yield before
        except BaseException:
            is_same = (
                self.engine is engine and engine.is_open and engine.counters.events == n_events
            )
            if is_same and self.held():
                engine.use(**rules)
                raise  # refused before any row was touched
            self.hand_to(engine)
            engine.use(**rules)
            if was_open:
                engine.open(*opened)
            self.opened = opened
            self.hold("")
            if before is not None:
                self.restore(before, text)
            raise
