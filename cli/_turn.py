"""Run one turn: read the prompt with a bar, stream the answer, and survive Ctrl-C."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from restkv_local.cli._console import PrefillBar, print_note, show_status

if TYPE_CHECKING:
    from restkv_local.chat.session import ChatSession
    from restkv_local.chat.session_file import SavedSession
    from restkv_local.documents import Document
    from restkv_local.llama import Llama
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
    model: Path,
    settings: dict[str, Any],
    *,
    system: str | None,
    verbose: bool,
    saved: SavedSession | None = None,
    changes: Mapping[str, Any] | None = None,
    use_cache: bool = True,
    can_undo: bool = True,
) -> Iterator[ChatSession]:
    """Load a model and start a conversation with it, or go on with one.

    Parameters
    ----------
    model, settings, verbose
        As in :func:`open_model`.
    system : str, optional
        The system prompt; the template's own default otherwise.
    saved : SavedSession, optional
        What to go on with.
    changes : mapping, optional
        Settings that count more than the saved ones.
    use_cache : bool
        Whether long texts are looked up among those that were read before.
    can_undo : bool
        Whether anybody can ask to go back: copies of the cache are kept for that.
    """
    if not can_undo:
        settings = {**settings, "undo_mib": 0}
    with open_model(model, settings, verbose=verbose) as llama:
        from restkv_local.chat.session import ChatSession
        from restkv_local.storage.reading_cache import ReadingCache

        session = ChatSession(
            llama, system=system, readings=ReadingCache.of_user() if use_cache else None
        )
        if saved is not None:
            say_history(session, session.load(saved, changes))
        yield session


def say_history(session: ChatSession, way: str) -> None:
    """Say what a loaded conversation is about: its length, its last question, how its cache came back."""
    turns = session.turns
    if not turns:
        print_note("the session has no turns yet", style="dim")
        return
    question = textwrap.shorten(turns[-1].question, 80, placeholder=" …")
    print_note(
        f"{len(turns):,} turn{'' if len(turns) == 1 else 's'}, {way}; last question: {question}",
        style="dim",
    )


def run_turn(
    session: ChatSession,
    text: str,
    documents: Sequence[str | Document],
    write: Callable[[str], None],
) -> bool:
    """Send a message and hand over its answer piece by piece.

    Parameters
    ----------
    session : ChatSession
        The conversation; afterwards its ``report`` tells about this turn.
    text : str
        The message.
    documents : sequence of str or Document
        Texts that go with it.
    write : callable
        Takes each piece as it comes.

    Returns
    -------
    bool
        False when Ctrl-C stopped the turn; what was written stays, and so does the session.
    """
    return run_answer(partial(session.send, text, documents=documents), write)


def run_answer(start: Callable[..., Iterator[str]], write: Callable[[str], None]) -> bool:
    """Read with a bar and hand over an answer piece by piece, as :func:`run_turn` does.

    Parameters
    ----------
    start : callable
        Takes ``on_progress`` and returns the stream of an answer.
    write : callable
        Takes each piece as it comes.
    """
    bar = PrefillBar()
    try:
        # The stream is a generator: closing it cancels what is still running, also when Ctrl-C or
        # a closed pipe hits between two pieces.
        stream = cast("Generator[str, None, None]", start(on_progress=bar.update))
        with closing(stream), bar:
            for piece in stream:
                bar.stop()
                write(piece)
    except KeyboardInterrupt:
        return False
    return True
