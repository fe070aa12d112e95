"""List the policies and allocators there are, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from restkv_local.cli import _options as opt
from restkv_local.cli._console import print_json, stdout_console


def policies(as_json: opt.Json = False) -> None:
    """List what --policy and --allocation can name: the idea, its source, what it needs to see."""
    # Imported here: the registries need NumPy, which `--help` must not wait for.
    from restkv_local.catalogue import describe_registries

    registries = describe_registries()
    if as_json:
        print_json(registries)
        return
    print_registry("Policies: which rows stay", registries["policies"])
    print_registry("Allocators: how layers and KV heads share the budget", registries["allocators"])


def print_registry(title: str, entries: Sequence[dict[str, Any]]) -> None:
    """Print one registry as a table on stdout, with what entries need if they say so."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("summary", ratio=1)
    table.add_column("source", ratio=1, overflow="fold")
    if "needs" in entries[0]:
        table.add_column("needs", width=12)  # "all queries,"
    for entry in entries:
        row = [entry["name"], entry["summary"], entry["source"]]
        if "needs" in entry:
            row.append(", ".join(entry["needs"]) or "nothing")
        table.add_row(*row)
    stdout_console().print(table)
