"""A model that was checked, loaded and given a cache: what conversations and completions work on."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from restkv_local.allocators.registry import BUILT_IN_ALLOCATORS
from restkv_local.config import Config
from restkv_local.engine import Engine
from restkv_local.model.demo import resolve_model
from restkv_local.model.model_file import check_supported, read_model
from restkv_local.native import NativeContext, library_stamp
from restkv_local.native.sampler import Sampler
from restkv_local.policies.registry import BUILT_IN_POLICIES
from restkv_local.sequence import EvictionEvent
from restkv_local.storage.fingerprint import fingerprint_model
from restkv_local.storage.reading_cache import reading_key
from restkv_local.turn_taking import TurnTaking
from restkv_local.types import Tracked
from restkv_local.version import __version__

Self = TypeVar("Self", bound="LoadedModel")


class LoadedModel:
    """One model, its engine, its sampler, and whose turn it is.

    Parameters
    ----------
    model_path : str or Path
        A GGUF file (split files too), or ``"demo"``.
    config : Config
        Every option.
    on_evict, also_track
        As :class:`~restkv_local.engine.Engine` takes them.
    verbose : bool
        Show llama.cpp's log on stderr.

    Raises
    ------
    ModelError
        If the file cannot be read; ``UnsupportedModelError`` if its cache cannot be evicted.
    ConfigError
        If an option does not fit the model.
    LibraryNotFoundError, AbiMismatchError
        If the patched library is missing or another one.
    """

    version = __version__

    def __init__(
        self,
        model_path: str | Path,
        config: Config,
        *,
        on_evict: Callable[[EvictionEvent], None] | None = None,
        also_track: Iterable[Tracked] = (),
        verbose: bool = False,
    ) -> None:
        self.config = config
        self.model_path = str(model_path)
        self.verbose = verbose
        path = resolve_model(model_path)
        self.shape = read_model(path)
        check_supported(
            self.shape, type_k=config.type_k, type_v=config.type_v, positions=config.positions
        )
        self.native = NativeContext(path, n_gpu_layers=config.n_gpu_layers, verbose=verbose)
        try:
            self.engine = Engine(self.native, self.shape, config, on_evict, also_track)
            self.sampler = self.make_sampler(config, _choose_seed(config.seed))
        except BaseException:
            self.native.close()
            raise
        self.turns = TurnTaking()

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the model's file."""
        return fingerprint_model(self.shape.path)

    def reading_key(self, tokens: Sequence[int], guide: Sequence[int]) -> str | None:
        """Return what the reading of a text, by the engine as it is open now, is kept under.

        None where no options say which rows are kept: by a policy with knobs of its own, or by code that is not ours
        and may be another the next time.
        """
        config = self.engine.config
        is_ours = config.policy in BUILT_IN_POLICIES and config.allocation in BUILT_IN_ALLOCATORS
        if not (self.engine.is_configured and is_ours):
            return None
        return reading_key(
            fingerprint=self.fingerprint,
            library=library_stamp(),
            config=config,
            tracks=self.engine.tracks,
            made=self.engine.made,
            tokens=tokens,
            guide=guide,
        )

    def make_sampler(self, config: Config, seed: int) -> Sampler:
        """Return what draws answers by these settings; close it after use."""
        return self.native.make_sampler(
            temp=config.temp,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            repeat_penalty=config.repeat_penalty,
            seed=seed,
        )

    def set_seed(self, seed: int) -> None:
        """Start the draws anew with this seed; -1: a random one."""
        self.sampler.seed = _choose_seed(seed)
        self.sampler.reset()

    def close(self) -> None:
        """Free model and cache; calling it again does nothing. One that nobody refers to any more is freed, too.

        Raises
        ------
        BusyError
            If another thread's call uses them; nothing is freed then.
        """
        with self.turns.call():
            self.sampler.close()
            self.native.close()

    def __enter__(self: Self) -> Self:
        """Return the model itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Free model and cache."""
        self.close()


def _choose_seed(seed: int) -> int:
    return secrets.randbits(32) if seed < 0 else seed
