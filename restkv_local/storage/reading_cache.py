"""Long prompts that were read once, by everything that decides what is left of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

from restkv_local.config import Config, parse_budget
from restkv_local.control_characters import show_path
from restkv_local.errors import ConfigError, SessionFileError, UnreadableFileError
from restkv_local.sequence import Snapshot
from restkv_local.storage.container import read_container, write_container
from restkv_local.storage.pruning import mark_used, prune
from restkv_local.storage.snapshot_file import pack_snapshot, unpack_snapshot
from restkv_local.types import F32

KIND: Final = "reading"
LIMIT_BYTES: Final = 4 << 30
LIMIT_VARIABLE: Final = "RESTKV_CACHE_LIMIT"
MIN_TOKENS: Final = 2048  # shorter prompts are read in seconds
RULES: Final = 3  # raise it with any change by which the same settings keep other rows
_SUFFIX: Final = ".reading"

# What changes the answer, the speed or the memory, and not one row of what was read.
_IRRELEVANT: Final = (
    "n_predict", "temp", "top_k", "top_p", "min_p", "repeat_penalty", "n_threads", "undo_mib",
)  # fmt: skip

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What is left of a prompt right after it was read, and the logits of its last token, (n_vocab,) float32."""

    snapshot: Snapshot
    logits: F32


def reading_key(
    *,
    fingerprint: str,
    library: str,
    config: Config,
    tracks: Iterable[str],
    made: Sequence[int],
    tokens: Sequence[int],
    guide: Sequence[int],
) -> str:
    """Return the name of a reading: equal where the rows are equal.

    Parameters
    ----------
    fingerprint, library : str
        Of the model's file and of the library.
    config : Config
        The settings; those that no row depends on are left out.
    tracks : iterable of str
        Figures kept of earlier queries.
    made : sequence of int
        The cache: its rows, how many of them an eviction leaves, how many none may touch.
    tokens, guide : sequence of int
        The prompt, and what says what matters in it.
    """
    settings = dataclasses.asdict(config)
    for name in _IRRELEVANT:
        del settings[name]
    parts = [
        RULES, fingerprint, library, settings, sorted(tracks), list(made), list(tokens), list(guide),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class ReadingCache:
    """A folder of readings, at most so large; the least recently used go first.

    A folder that cannot be written and a file that is damaged or cannot be read now cost time, never the run: they
    are logged as a warning, and the prompt is read. Only what is damaged or of another format is removed.

    Parameters
    ----------
    limit_bytes : int
        Size of all files together.
    """

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    @classmethod
    def of_user(cls) -> ReadingCache | None:
        """Return that of the user's cache folder; None where ``RESTKV_CACHE_LIMIT`` is 0.

        Raises
        ------
        ConfigError
            If ``RESTKV_CACHE_LIMIT`` is no size, as in 512MiB.
        """
        limit_bytes = _limit()
        return (
            cls(user_cache_path("restkv-local") / "readings", limit_bytes) if limit_bytes else None
        )

    def load(self, key: str) -> Reading | None:
        """Return a reading, None if there is none that is whole."""
        path = self._path(key)
        if not os.path.exists(path):  # Path.exists() fails where nobody may look
            return None
        try:
            meta, arrays = read_container(path, KIND)
            if meta.get("key") != key:
                raise SessionFileError(f"{show_path(path)} is the reading of something else")
            reading = Reading(unpack_snapshot(meta, arrays), arrays["logits"])
        except (UnreadableFileError, MemoryError) as error:
            why = str(error) or "there is not enough memory"
            _log.warning("a kept reading stays, the text is read anew: %s", why)
            return None
        except (SessionFileError, KeyError, TypeError) as error:
            _log.warning("a kept reading is removed, the text is read anew: %s", error)
            with suppress(OSError):
                path.unlink()
            return None
        mark_used(path)
        return reading

    def store(self, key: str, reading: Reading) -> None:
        """Keep a reading; one that is larger than the folder may be is not kept."""
        meta, arrays = pack_snapshot(reading.snapshot)
        if sum(array.nbytes for array in arrays.values()) > self.limit_bytes:
            return
        path = self._path(key)
        try:
            write_container(path, KIND, {"key": key, **meta}, {**arrays, "logits": reading.logits})
        except SessionFileError as error:
            _log.warning("a reading is not kept: %s", error)
            return
        prune(self.folder, _SUFFIX, self.limit_bytes, keep=path)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"


def _limit() -> int:
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if text in ("", "0"):
        return 0 if text else LIMIT_BYTES
    with suppress(ConfigError):  # which would speak of a budget
        spec = parse_budget(text)
        if spec.kind == "bytes":
            return int(spec.value)
    raise ConfigError(
        f"{LIMIT_VARIABLE} must be a size in KiB, MiB or GiB, as in 512MiB or 4GiB; got {text!r}"
    )
