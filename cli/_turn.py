"""Run one turn: read the prompt with a bar, stream the answer, and survive Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from restkv_local.cli._console import PrefillBar, stderr_console

if TYPE_CHECKING:
    from restkv_local.session import ChatSession


@contextmanager
def open_session(
    model: Path, settings: dict[str, Any], *, system: str | None, verbose: bool
) -> Iterator[ChatSession]:
    """Load a model and start a conversation with it.

    Parameters
    ----------
    model : Path
        The GGUF file.
    settings : dict
        Fields of :class:`restkv_local.config.Config`; ``budget`` may be text.
    system : str, optional
        The system prompt; the template's own default otherwise.
    verbose : bool
        Let llama.cpp log to stderr.
    """
    # Imported here: `--help` and usage errors need neither NumPy nor the native library.
    from restkv_local.llama import Llama
    from restkv_local.session import ChatSession

    console = stderr_console()
    waiting = console.status(f"loading {model.name}") if console.is_interactive else None
    if waiting:
        waiting.start()
    try:
        llama = Llama(model, verbose=verbose, **settings)
    finally:
        if waiting:
            waiting.stop()
    with llama:
        yield ChatSession(llama, system=system)


def run_turn(
    session: ChatSession,
    text: str,
    documents: Sequence[str],
    write: Callable[[str], None],
) -> bool:
    """Send a message and hand over its answer piece by piece.

    Parameters
    ----------
    session : ChatSession
        The conversation; afterwards its ``report`` tells about this turn.
    text : str
        The message.
    documents : sequence of str
        Texts that go with it.
    write : callable
        Takes each piece as it comes.

    Returns
    -------
    bool
        False when Ctrl-C stopped the turn; what was written stays, and so does the session.
    """
    bar = PrefillBar()
    try:
        # ChatSession.send() is a generator: closing it cancels what is still running, also when
        # Ctrl-C or a closed pipe hits between two pieces.
        stream = cast(
            "Generator[str, None, None]",
            session.send(text, documents=documents, on_progress=bar.update),
        )
        with closing(stream), bar:
            for piece in stream:
                bar.stop()
                write(piece)
    except KeyboardInterrupt:
        return False
    return True
