"""Long-context chat and document QA with a bounded, scored KV cache."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from restkv_local.errors import LibraryNotFoundError
from restkv_local.library_folder import library_folder

if TYPE_CHECKING:
    from restkv_local.allocators.registry import register_allocator
    from restkv_local.chat.session import ChatSession
    from restkv_local.config import Config
    from restkv_local.errors import RestKVError
    from restkv_local.llama import Llama
    from restkv_local.policies.registry import register_policy
    from restkv_local.version import __version__

__all__ = [
    "ChatSession",
    "Config",
    "Llama",
    "RestKVError",
    "__version__",
    "register_allocator",
    "register_policy",
]

_HOMES = {
    "ChatSession": "chat.session",
    "Config": "config",
    "Llama": "llama",
    "RestKVError": "errors",
    "__version__": "version",
    "register_allocator": "allocators.registry",
    "register_policy": "policies.registry",
}

# Scripts import from llama_cpp too, and whoever is first chooses the library for both.
with suppress(LibraryNotFoundError):
    os.environ["LLAMA_CPP_LIB_PATH"] = str(library_folder())


def __getattr__(name: str) -> Any:
    # Late: `restkv --help` must not wait for NumPy or the library.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"restkv_local.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
