"""The thread that native calls run on, so that the main thread stays free to see Ctrl-C."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from restkv_local.errors import InputError

T = TypeVar("T")

# How long the main thread sleeps between looks for Ctrl-C; it bounds the reaction on systems whose locks
# cannot be interrupted.
_POLL_S: Final = 0.2
# Stacks to try, largest first; 0 is the system's own. They are address space: only what is used is memory.
_STACKS: Final = (512 << 20, 8 << 20, 0)
_LEAST_STACK: Final = 1 << 20  # of any system


class Worker:
    """Runs one call after the other.

    Attributes
    ----------
    stack_bytes : int
        How deep the calls may go.

    Notes
    -----
    Ctrl-C may come between any two steps of the main thread, also of the library's code it is in. What
    concurrent.futures waits with would then keep its lock, and the worker would wait for that for ever.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._calls: queue.SimpleQueue[_Call[Any] | None] = queue.SimpleQueue()
        self._thread, self.stack_bytes = _start_thread(self._work)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
            del call  # its result may be a whole cache

    def run(self, function: Callable[[], T], *, on_interrupt: Callable[[], None]) -> T:
        """Run a function and wait until it has ended, however often Ctrl-C is pressed meanwhile.

        Parameters
        ----------
        function : callable
            What to run; one that asks for another in turn has it run at once.
        on_interrupt : callable
            Called again and again from the first Ctrl-C until the function has ended.

        Raises
        ------
        KeyboardInterrupt
            If Ctrl-C was pressed, and the function itself raised nothing.
        InputError
            If the thread was ended by :meth:`close` before it came to this function, or this process was forked
            after it was started.
        """
        if threading.current_thread() is self._thread:
            return function()
        if self.is_elsewhere:
            raise InputError(
                "this process was forked after the model was opened, and a fork has neither its thread nor its devices:"
                " open a Llama in each process, or start processes with multiprocessing's spawn"
            )
        call = _Call(function)
        is_queued = pressed = False
        while True:
            try:
                if not is_queued:
                    self._calls.put(call)  # once more, should Ctrl-C come right after: it runs once
                    is_queued = True
                if pressed:
                    on_interrupt()
                if call.wait():
                    break
                if not self._thread.is_alive() and not call.has_run:
                    raise InputError("the model was closed meanwhile: make a new Llama")
            except KeyboardInterrupt:
                pressed = True
        result = call.result()
        if pressed:
            raise KeyboardInterrupt
        return result

    @property
    def is_elsewhere(self) -> bool:
        """Whether this process is a fork: the thread stayed in the one it was started in."""
        return os.getpid() != self._pid

    def end(self) -> None:
        """Have the thread end after what it runs."""
        self._calls.put(None)

    def close(self) -> None:
        """Wait for what runs, then end the thread."""
        self.end()
        self._thread.join()


def _start_thread(work: Callable[[], None]) -> tuple[threading.Thread, int]:
    """Start a thread with the largest stack that the system gives; return it and the stack's size."""
    before = threading.stack_size()
    for size in _STACKS:
        thread = threading.Thread(target=work, name="restkv", daemon=True)
        try:
            threading.stack_size(size)
            thread.start()
        except (ValueError, RuntimeError):
            if size == _STACKS[-1]:
                raise
        else:
            break
        finally:
            threading.stack_size(before)
    return thread, size or _LEAST_STACK


class _Call(Generic[T]):
    """A function, and what came of it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._value: T | None = None
        self._error: BaseException | None = None
        self.has_run = False
        self._ended = threading.Lock()
        self._ended.acquire()

    def run(self) -> None:
        """Run it, if that was not done yet."""
        if self.has_run:
            return
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
        self.has_run = True
        self._ended.release()

    def wait(self) -> bool:
        """Tell whether the function has ended, after a while at the latest."""
        return self.has_run or self._ended.acquire(timeout=_POLL_S)

    def result(self) -> T:
        """Return what the function did, or raise its error."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback has this frame: a cycle would keep the model
        return self._value  # type: ignore[return-value]
