"""Where the commands begin: Ctrl-C while the rest is still being imported ends them with 130, as it does later."""

from __future__ import annotations

import os
import signal
from types import ModuleType


def restkv() -> None:
    """Run ``restkv`` with the process's arguments."""
    _import_main().main()


def restkv_chat() -> None:
    """Run ``restkv-chat`` with the process's arguments."""
    _import_main().chat_main()


def _import_main() -> ModuleType:
    # Under nohup it stays ignored.
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if raises:
        # Not an exception: half of an import would turn it into another error.
        signal.signal(signal.SIGINT, lambda signum, frame: os._exit(130))
    from restkv_local.cli import main

    if raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return main
