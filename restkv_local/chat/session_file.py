"""A conversation on disk: turns, settings, sampler and the bounded cache, in one file."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from platformdirs import user_data_path

from restkv_local.chat.turn import Attachment, Turn
from restkv_local.config import Config
from restkv_local.control_characters import show_path
from restkv_local.errors import ConfigError, SessionFileError, UnreadableFileError
from restkv_local.sequence import Snapshot
from restkv_local.storage.container import (
    read_container,
    read_meta,
    unreadable,
    write_container,
)
from restkv_local.storage.fields import check_fields
from restkv_local.storage.snapshot_file import pack_snapshot, unpack_snapshot
from restkv_local.storage.sole_writer import sole_writer

KIND: Final = "session"
SUFFIX: Final = ".restkv"

# What a machine decides, not a conversation: never taken from a file.
RUNTIME: Final = ("n_threads", "n_gpu_layers", "undo_mib")
# What the rows of a cache were made by: they cannot follow a change.
FIXED: Final = (
    "type_k", "type_v", "positions", "prefill", "n_ubatch", "n_obs", "n_guide",
)  # fmt: skip

# Every system takes these in a file name, and none of them is a path.
_NAME: Final = re.compile(r"\w[\w .+-]{0,99}")
# Of the 255 that file systems take: a part being written has a longer name.
_NAME_BYTES: Final = 200


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SavedSession:
    """Everything a conversation needs to go on.

    Attributes
    ----------
    model, fingerprint : str
        Name of the model and :func:`~restkv_local.storage.fingerprint.fingerprint_model` of its file.
    library : str
        The library that made the cache; another one does not read it.
    config : Config
        The settings.
    system : str or None
        The system prompt, None for the template's own.
    turns : tuple of Turn
        The conversation.
    text : str
        What the cache stands for.
    opened : tuple of int
        What the cache was opened for: prompt, answer and pinned tokens.
    seed, n_drawn : int
        The sampler's whole state.
    snapshot : Snapshot or None
        The cache. None if nothing was read or it cannot be kept: the turns are read again then.
    saved : str
        When, as ISO 8601.
    path : Path or None
        The file it was read from.
    """

    model: str
    fingerprint: str
    library: str
    config: Config
    system: str | None
    turns: tuple[Turn, ...]
    text: str
    opened: tuple[int, int, int]
    seed: int
    n_drawn: int
    snapshot: Snapshot | None
    saved: str = dataclasses.field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    )
    path: Path | None = dataclasses.field(default=None, compare=False)

    def check_model(self, fingerprint: str, name: str) -> None:
        """Refuse any model but the one of the conversation.

        Raises
        ------
        SessionFileError
            If the fingerprints differ.
        """
        if fingerprint != self.fingerprint:
            raise SessionFileError(
                f"the session was held with {self.model}, and {name} is another model or another file "
                "of it: open that one, or begin a session under another name"
            )


def sessions_folder() -> Path:
    """Folder of the sessions that have a name, in the user's data folder."""
    return user_data_path("restkv-local") / "sessions"


def session_path(name: str) -> Path:
    """File of a session by its name.

    Raises
    ------
    ConfigError
        If the name cannot be a file's name everywhere.
    """
    if not _NAME.fullmatch(name) or len(name.encode()) > _NAME_BYTES:
        raise ConfigError(
            "a session's name is up to 100 letters (fewer beyond ASCII), digits, spaces and _ . + -, and begins with a "
            f"letter or digit; got {name!r}"
        )
    return sessions_folder() / f"{name}{SUFFIX}"


def list_sessions() -> list[Path]:
    """Files of all named sessions, the one saved last first.

    Raises
    ------
    SessionFileError
        If their folder cannot be read.
    """
    folder = sessions_folder()
    try:
        files = [path for path in folder.glob(f"*{SUFFIX}") if path.is_file()]
        return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError as error:
        raise SessionFileError(
            f"cannot read {show_path(folder)}: {error.strerror or error}"
        ) from error


def write_session(
    path: Path, session: SavedSession, *, replaces: Collection[str] | None = None
) -> None:
    """Write a session; a file that is there and is none is left alone.

    Parameters
    ----------
    path : Path
        Where to.
    session : SavedSession
        What.
    replaces : collection of str, optional
        When the file that is there may have been saved, empty if there should be none. Another one is left alone then.

    Raises
    ------
    SessionFileError
        If it cannot be written, or would replace something else; what was there is unchanged.
    """
    meta = {field: getattr(session, field) for field in _PLAIN}
    meta["config"] = dataclasses.asdict(session.config)
    meta["turns"] = [dataclasses.asdict(turn) for turn in session.turns]
    arrays: dict[str, Any] = {}
    if session.snapshot is not None:
        meta["snapshot"], arrays = pack_snapshot(session.snapshot)
    with sole_writer(path):
        _check_replaced(path, replaces)
        write_container(path, KIND, meta, arrays)


def _check_replaced(path: Path, replaces: Collection[str] | None) -> None:
    """Refuse to replace what is no session, or one that was not saved at these moments."""
    if not os.path.exists(path):
        return
    try:
        saved = read_meta(path, KIND).get("saved")
    except UnreadableFileError:
        raise
    except SessionFileError as error:
        raise SessionFileError(
            f"{show_path(path)} is there and is no session of this version, so it is not "
            "replaced: choose another name or remove it"
        ) from error
    if replaces is not None and saved not in replaces:
        raise SessionFileError(
            f"{show_path(path)} was saved by somebody else meanwhile, so it is not replaced: "
            "save this conversation under another name, or load that one"
        )


def read_session(path: str | Path) -> SavedSession:
    """Read a session, all of it checked before any of it is used.

    Raises
    ------
    SessionFileError
        If the file is missing, damaged, newer, or no session, or cannot be read now.
    """
    path = Path(path)
    meta, arrays = read_container(path, KIND)
    try:
        return _check(
            SavedSession(
                **{field: meta[field] for field in _PLAIN if field != "opened"},
                opened=tuple(meta["opened"]),
                config=Config(**meta["config"]),
                turns=tuple(_turn(turn) for turn in meta["turns"]),
                snapshot=unpack_snapshot(meta["snapshot"], arrays) if "snapshot" in meta else None,
                path=path,
            )
        )
    except MemoryError as error:
        raise unreadable(path, error) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SessionFileError(
            f"{show_path(path)} does not fit this version of restkv-local ({error!s:.200}): "
            "use the version that wrote it, or begin anew under another name"
        ) from error


def _check(session: SavedSession) -> SavedSession:
    """Raise TypeError or ValueError for what a file by somebody else may hold."""
    check_fields(session)
    counts = [*session.opened, session.n_drawn]
    for turn in session.turns:
        check_fields(turn)
        counts.append(turn.n_drawn)
        for attachment in turn.documents:
            check_fields(attachment)
    if session.snapshot is not None:
        counters = check_fields(session.snapshot.counters)
        counts += [counters.seen, counters.peak, counters.events, session.snapshot.moments.n]
    if not all(0 <= count < 2**31 for count in counts) or not 0 <= session.seed < 2**32:
        raise ValueError(
            f"counts {counts} or seed {session.seed} are beyond what a session counts to"
        )
    return session


def read_summary(path: Path) -> dict[str, Any]:
    """Return what a list shows of a session, without reading its cache.

    Returns
    -------
    dict
        ``name``, ``model``, ``turns``, ``last_question``, ``documents``, ``saved``, ``bytes``.

    Raises
    ------
    SessionFileError
        If the file is no readable session.
    """
    meta = read_meta(path, KIND)
    try:
        return _summarise(path, meta)
    except (KeyError, TypeError) as error:
        raise SessionFileError(f"{show_path(path)} is no session: it has no {error}") from error


def _summarise(path: Path, meta: dict[str, Any]) -> dict[str, Any]:
    turns = meta["turns"]
    return {
        "name": path.stem,
        "model": _text(meta, "model"),
        "turns": len(turns),
        "last_question": _text(turns[-1], "question") if turns else "",
        "documents": [
            {
                "name": _text(one, "name"),
                "sha256": _text(one, "sha256"),
                "characters": len(one["text"]),
            }
            for turn in turns
            for one in turn["documents"]
        ],
        "saved": _text(meta, "saved"),
        "bytes": path.stat().st_size,
    }


def _text(values: Mapping[str, Any], name: str) -> str:
    """Return a value that must be text; KeyError otherwise."""
    if not isinstance(values[name], str):
        raise KeyError(name)
    return str(values[name])


def merge_settings(saved: Config, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a session goes on with.

    Parameters
    ----------
    saved : Config
        Of the file.
    changes : mapping
        Fields of Config that were asked for anew.

    Raises
    ------
    ConfigError
        If a change is one that rows already made cannot follow.
    """
    for name in FIXED:
        if name in changes and changes[name] != getattr(saved, name):
            raise ConfigError(
                f"{name}={changes[name]!r} does not fit the session, whose cache was made with "
                f"{name}={getattr(saved, name)!r}: leave it out, or begin a session under another name"
            )
    kept = {name: value for name, value in dataclasses.asdict(saved).items() if name not in RUNTIME}
    return {**kept, **changes}


def _turn(meta: dict[str, Any]) -> Turn:
    documents = tuple(Attachment(**document) for document in meta["documents"])
    return Turn(**{**meta, "documents": documents})


# Fields that JSON holds as they are.
_PLAIN: Final = (
    "model", "fingerprint", "library", "system", "text", "opened", "seed", "n_drawn", "saved",
)  # fmt: skip
