"""Print what a bug report needs: package, library, backend, devices."""

from __future__ import annotations

import os
import platform

from restkv_local.cli._console import format_bytes, stdout_console


def doctor() -> None:
    """Show which library is used, whether it fits this package, and what it runs on."""
    from restkv_local import __version__

    console = stdout_console()

    def show(name: str, value: object) -> None:
        console.print(f"{name:<9} {value}", soft_wrap=True)

    show("package", f"restkv-local {__version__}")
    show("python", f"{platform.python_version()} on {platform.platform()}")
    # Some switch parts off: a report without them would mislead.
    variables = [
        f"{name}={value}" for name, value in os.environ.items() if name.startswith("RESTKV_")
    ]
    if variables:
        show("variables", " ".join(sorted(variables)))

    # Raises with the places looked at and how to build; what is known stands above it by then.
    from restkv_local.native import library_info

    found = library_info()
    show("library", found["path"])
    show("ABI", found["abi"])
    show("pin", f"{found['pin']}, bindings {found['version']}")
    show("hooks", "on" if found["hooks_enabled"] else "off: llama.cpp runs as released")
    show("backend", found["system_info"])
    for device in found["devices"]:
        show(
            "device",
            f"{device['name']}: {device['description']}, {format_bytes(device['memory_free'])} "
            f"free of {format_bytes(device['memory_total'])}",
        )
