"""The patched llama.cpp, seen from Python: one loader, one file of bindings, one context class."""

from restkv_local.native._bindings import FAILED
from restkv_local.native._library import library_info, library_stamp, load
from restkv_local.native.context import NativeContext

__all__ = ["FAILED", "NativeContext", "library_info", "library_stamp", "load"]
