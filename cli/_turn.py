"""Run one turn: read the prompt with a bar, stream the answer, and survive Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from restkv_local.cli._console import PrefillBar, show_status

if TYPE_CHECKING:
    from restkv_local.llama import Llama
    from restkv_local.session import ChatSession
    from restkv_local.types import Tracked


@contextmanager
def open_model(
    model: Path, settings: dict[str, Any], *, verbose: bool, also_track: Iterable[Tracked] = ()
) -> Iterator[Llama]:
    """Load a model, with something to look at meanwhile; it is freed at the end.

    Parameters
    ----------
    model : Path
        The GGUF file.
    settings : dict
        Fields of :class:`restkv_local.config.Config`; ``budget`` may be text.
    verbose : bool
        Let llama.cpp log to stderr.
    also_track : iterable of Tracked
        What policies that are switched to later will want.
    """
    # Imported here: `--help` and usage errors need neither NumPy nor the native library.
    from restkv_local.llama import Llama

    with show_status(f"loading {model.name}"):
        llama = Llama(model, verbose=verbose, also_track=also_track, **settings)
    with llama:
        yield llama


@contextmanager
def open_session(
    model: Path, settings: dict[str, Any], *, system: str | None, verbose: bool
) -> Iterator[ChatSession]:
    """Load a model and start a conversation with it.

    Parameters
    ----------
    model, settings, verbose
        As in :func:`open_model`.
    system : str, optional
        The system prompt; the template's own default otherwise.
    """
    with open_model(model, settings, verbose=verbose) as llama:
        from restkv_local.session import ChatSession

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
