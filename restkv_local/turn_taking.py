"""Lets one call at a time use a model, and says so to the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from inspect import GEN_RUNNING, getgeneratorstate
from typing import Any, TypeVar

from restkv_local.errors import BusyError

T = TypeVar("T")


class TurnTaking:
    """Who may use the cache now: the newest call of the thread that uses it.

    A stream that nobody finished does not lock its own thread out: a new call there closes it and takes over,
    and the stream, should it ever be asked for more, says so. Another thread is refused until the call has ended.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turn: Turn | None = None
        self._late: list[Callable[[], None]] = []

    def later(self, do: Callable[[], None]) -> None:
        """Have something done before the next turn begins, for whom the model is too busy now."""
        self._late.append(do)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Use the model for the length of the block; raises BusyError as :meth:`turn` does."""
        with self.turn() as turn, turn.work():
            yield

    @contextmanager
    def turn(self, stream: Generator[Any, None, None] | None = None) -> Iterator[Turn]:
        """Hold the model until the block ends.

        Parameters
        ----------
        stream : generator, optional
            What the turn yields from: the next turn closes it, so that it leaves its session in order.

        Raises
        ------
        BusyError
            If another thread holds it.
        """
        turn = Turn(self, stream)
        # Not waiting: a callback of the running call may be what asks.
        if self._lock.locked():
            raise _busy()
        # By the statement alone: Ctrl-C may come right after an acquire(), and nobody would release it.
        with self._lock:
            if self._turn is not None and self._turn.thread != turn.thread:
                raise _busy()
            before = self._turn
            if before is not None and before.stream is not None:
                if (
                    getgeneratorstate(before.stream) == GEN_RUNNING
                ):  # another thread is just closing it
                    raise _busy()
                before.stream.close()
            self._turn = None
            while self._late:
                self._late.pop(0)()
            self._turn = turn
        try:
            yield turn
        finally:
            if self._turn is turn:
                self._turn = None


class Turn:
    """One call's hold of the model."""

    def __init__(self, turns: TurnTaking, stream: Generator[Any, None, None] | None) -> None:
        self._turns = turns
        self.stream = stream
        self.thread = threading.get_ident()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Use the model, in whatever thread the call goes on.

        Raises
        ------
        BusyError
            If a newer call has taken over.
        """
        # Asked before the lock is waited for: a callback of the call that took over may be what goes on.
        self._check()
        with self._turns._lock:
            self._check()
            self.thread = threading.get_ident()
            yield

    def _check(self) -> None:
        if self._turns._turn is not self:
            raise taken_over()


def in_turn(turns: TurnTaking, stream: Generator[T, None, None]) -> Generator[T, None, None]:
    """Yield what a stream yields, holding the model from its first piece to its end.

    Raises
    ------
    BusyError
        If another thread holds the model, or a newer call has taken over.
    """
    with turns.turn(stream) as turn, closing(stream):
        while True:
            with turn.work():
                try:
                    piece = next(stream)
                except StopIteration:
                    return
            yield piece


def taken_over() -> BusyError:
    """Return what a call is told that cannot go on."""
    return BusyError(
        "a newer call has taken the model's cache over or freed it: finish a stream before the next call, or ask again"
    )


def _busy() -> BusyError:
    return BusyError(
        "the model is busy with another call: wait for its end (a stream: read it or close() it),"
        " or give each thread a Llama of its own"
    )
