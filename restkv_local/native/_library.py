"""Have the llama-cpp-python bindings load the patched library, and refuse any other."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from restkv_local.errors import AbiMismatchError, LibraryNotFoundError
from restkv_local.library_folder import HOW_TO_BUILD, library_folder

ABI = 6  # LLAMA_RESTKV_ABI of patches/src/llama-restkv.h


@functools.cache
def load() -> ModuleType:
    """Return the module ``llama_cpp.llama_cpp`` bound to the patched library.

    Raises
    ------
    LibraryNotFoundError
        If the library is missing or cannot be loaded.
    AbiMismatchError
        If llama_cpp was imported before with another library, or the library belongs to another version.
    """
    folder = library_folder()
    if "llama_cpp" in sys.modules:
        loaded = import_module("llama_cpp.llama_cpp")  # another thread may be in the midst of it
        if not hasattr(loaded._lib, "llama_restkv_abi_version"):
            raise AbiMismatchError(
                "llama_cpp is already imported with the stock library: import restkv_local first, "
                f"or set LLAMA_CPP_LIB_PATH={folder} before python starts"
            )
    else:
        os.environ["LLAMA_CPP_LIB_PATH"] = str(folder)
        try:
            loaded = import_module("llama_cpp.llama_cpp")
        except (OSError, RuntimeError, FileNotFoundError, AttributeError) as error:
            sys.modules.pop("llama_cpp", None)
            raise LibraryNotFoundError(f"cannot load {folder}: {error}: {HOW_TO_BUILD}") from error
    check_abi(loaded._lib, folder)
    return loaded


def check_abi(library: Any, folder: Path) -> None:
    """Compare the library's ABI number with the package's."""
    try:
        found = library.llama_restkv_abi_version()
    except AttributeError as error:
        raise AbiMismatchError(
            f"{folder} holds an unpatched llama library, without llama_restkv_*: {HOW_TO_BUILD}"
        ) from error
    if found != ABI:
        raise AbiMismatchError(
            f"{folder} has restkv ABI {found}; this package needs ABI {ABI}: {HOW_TO_BUILD}"
        )


def library_stamp() -> str:
    """Return what must be equal for one library to take another's cache over: the pin and the ABI number."""
    library = load()._lib
    library.llama_restkv_pin.restype = ctypes.c_char_p
    return f"{library.llama_restkv_pin().decode()}, ABI {library.llama_restkv_abi_version()}"


def library_info() -> dict[str, Any]:
    """Return the facts a bug report needs.

    Returns
    -------
    dict
        ``path``, ``abi``, ``pin``, ``version`` (of the bindings), ``system_info``, ``hooks_enabled`` and
        ``devices``: a list of ``name``, ``description``, ``memory_free`` and ``memory_total`` (bytes).
    """
    from importlib.metadata import version

    llama = load()
    library = llama._lib
    library.llama_restkv_pin.restype = ctypes.c_char_p
    llama.llama_backend_init()
    return {
        "path": str(library_folder()),
        "abi": library.llama_restkv_abi_version(),
        "pin": library.llama_restkv_pin().decode(),
        "version": version("llama-cpp-python"),
        "system_info": llama.llama_print_system_info().decode().strip(),
        "hooks_enabled": bool(library.llama_restkv_enabled()),
        "devices": _devices(),
    }


def _devices() -> list[dict[str, Any]]:
    folder = library_folder()
    # ggml's device list lives in a library of its own that libllama has already loaded.
    ggml, ggml_base = (ctypes.CDLL(str(_find(folder, name))) for name in ("ggml", "ggml-base"))
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    for function in (ggml_base.ggml_backend_dev_name, ggml_base.ggml_backend_dev_description):
        function.restype = ctypes.c_char_p
        function.argtypes = [ctypes.c_void_p]
    size = ctypes.POINTER(ctypes.c_size_t)
    ggml_base.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size, size]
    devices = []
    for i in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(i)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ggml_base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        devices.append(
            {
                "name": ggml_base.ggml_backend_dev_name(device).decode(),
                "description": ggml_base.ggml_backend_dev_description(device).decode(),
                "memory_free": free.value,
                "memory_total": total.value,
            }
        )
    return devices


def _find(folder: Path, name: str) -> Path:
    for path in folder.iterdir():
        if path.stem.removeprefix("lib") == name:
            return path
    raise LibraryNotFoundError(f"{folder} lacks the library {name}: {HOW_TO_BUILD}")
