"""What conversations were kept: a list, one of them, or one less."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer
from restkv_local.cli import _options as opt
from restkv_local.cli._console import format_bytes, print_json, print_note, stdout_console

from restkv_local.errors import SessionFileError

sessions = typer.Typer(
    no_args_is_help=True,
    context_settings=opt.HELP_NAMES,
    help="List, show and remove the conversations that --session keeps.",
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", show_default=False, help="As --session has it.")
]


@sessions.command("list")
def list_(as_json: opt.Json = False) -> None:
    """List the sessions, the one used last first."""
    from restkv_local.chat.session_file import list_sessions, sessions_folder

    summaries = [_summary(path) for path in list_sessions()]
    if as_json:
        print_json({"folder": str(sessions_folder()), "sessions": summaries})
        return
    if not summaries:
        print_note(f"no sessions in {sessions_folder()}; --session NAME begins one")
        return
    _print_table(summaries)


@sessions.command()
def show(name: Name, as_json: opt.Json = False) -> None:
    """Show what a session is about: model, turns, documents, size."""
    from restkv_local.chat.session_file import read_summary

    summary = read_summary(_existing(name))
    if as_json:
        print_json(summary)
        return
    lines = [
        f"session    {summary['name']}",
        f"model      {summary['model']}",
        f"saved      {summary['saved']}",
        f"size       {format_bytes(summary['bytes'])}",
        f"turns      {summary['turns']:,}",
        *(
            f"document   {one['name']}, {one['characters']:,} characters, sha256 {one['sha256'][:16]}"
            for one in summary["documents"]
        ),
        f"last       {textwrap.shorten(summary['last_question'], 200, placeholder=' …')}",
    ]
    stdout_console().print("\n".join(lines), soft_wrap=True)


@sessions.command()
def rm(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", show_default=False, help="One or more.")
    ],
) -> None:
    """Remove sessions for good; if one of them does not exist, none is removed."""
    paths = [_existing(name) for name in names]
    for path in dict.fromkeys(paths):
        try:
            path.unlink()
        except OSError as error:
            raise SessionFileError(f"cannot remove {path}: {error.strerror or error}") from error
        print_note(f"removed {path}")


def _existing(name: str) -> Path:
    from restkv_local.chat.session_file import list_sessions, session_path

    path = session_path(name)
    if not os.path.isfile(path):
        known = ", ".join(one.stem for one in list_sessions()) or "none"
        raise SessionFileError(f"there is no session {name!r}; there are: {known}")
    return path


def _summary(path: Path) -> dict[str, Any]:
    from restkv_local.chat.session_file import read_summary

    try:
        return read_summary(path)
    except SessionFileError as error:
        return {"name": path.stem, "error": str(error), "bytes": path.stat().st_size}


def _print_table(summaries: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("name", "model", box=None)
    for column in ("turns", "size"):
        table.add_column(column, justify="right")
    table.add_column("saved")
    table.add_column("last question")
    for one in summaries:
        if "error" in one:
            table.add_row(one["name"], "", "", format_bytes(one["bytes"]), "", "cannot be read")
            continue
        table.add_row(
            one["name"],
            one["model"],
            f"{one['turns']:,}",
            format_bytes(one["bytes"]),
            one["saved"][:16].replace("T", " "),
            textwrap.shorten(one["last_question"], 60, placeholder=" …"),
        )
    stdout_console().print(table)
