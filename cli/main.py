"""Turn a command line into a command, and an error into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import typer
from restkv_local.cli._console import print_error
from restkv_local.cli._options import HELP_NAMES, Version
from restkv_local.cli.ask import ask
from restkv_local.cli.bench import bench
from restkv_local.cli.chat import chat
from restkv_local.cli.doctor import doctor
from restkv_local.cli.eval import evaluate
from restkv_local.cli.info import info
from restkv_local.cli.plan import plan
from restkv_local.cli.policies import policies
from restkv_local.cli.sessions import sessions

from restkv_local.errors import ConfigError, RestKVError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # wraps the paragraphs of a docstring
    context_settings=HELP_NAMES,
)
app.command()(chat)
app.command()(ask)
app.command()(info)
app.command()(policies)
app.command()(plan)
app.command()(bench)
app.command("eval")(evaluate)
app.command()(doctor)
app.add_typer(sessions, name="sessions")

# A Typer app with one command is that command: `restkv-chat MODEL`, no subcommand.
chat_app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)
chat_app.command(context_settings=HELP_NAMES)(chat)


@app.callback()
def restkv(version: Version = False) -> None:
    """Chat over long texts with a bounded, scored KV cache.

    Answers go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage
    or an option that cannot be met, 130 stopped with Ctrl-C.
    """


def run(command: typer.Typer, name: str, args: Sequence[str] | None = None) -> None:
    """Run a command line; always ends in ``SystemExit``.

    Parameters
    ----------
    command : typer.Typer
        The application.
    name : str
        What usage lines call it.
    args : sequence of str, optional
        The command line without the program's name; the process's own by default.

    Raises
    ------
    SystemExit
        0 done, 1 a :class:`RestKVError` or output that nobody takes, 2 usage or :class:`ConfigError`,
        130 Ctrl-C.
    """
    # An answer may hold any character; a terminal or file of another encoding must not stop it.
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by whoever started us
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif hasattr(getattr(sys, stream), "reconfigure"):
            getattr(sys, stream).reconfigure(errors="backslashreplace")
    try:
        try:
            command(args=args, prog_name=name)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:  # before the command's own handling, or after it
        raise SystemExit(130) from None
    except RestKVError as error:
        print_error(str(error))
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
    except MemoryError:
        print_error(
            "memory is not enough for this; give less text, a lower --budget, or close other programs"
        )
        raise SystemExit(1) from None
    except BrokenPipeError:  # whoever read has seen enough
        _drop_output()
        raise SystemExit(1) from None
    except OSError as error:
        _drop_output()
        print_error(f"{error.filename or 'cannot write the output'}: {error.strerror or error}")
        raise SystemExit(1) from None


def _drop_output() -> None:
    """Let what a full disk did not take go, or Python would try again as it ends."""
    with suppress(OSError, ValueError):  # a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(args: Sequence[str] | None = None) -> None:
    """Run ``restkv``."""
    run(app, "restkv", args)


def chat_main(args: Sequence[str] | None = None) -> None:
    """Run ``restkv-chat``."""
    run(chat_app, "restkv-chat", args)
