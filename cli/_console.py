"""What goes where: answers to stdout, all else to stderr, colour and bars to terminals only."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from restkv_local.control_characters import escape_control, strip_control

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from restkv_local.sequence import Progress

MIB = 1024 * 1024

_UNFINISHED = {
    "cancelled": "cancelled",
    "length": "answer cut at -n",
    "cache_full": "answer cut, the cache is full: -n N makes room for N tokens",
}


def stderr_console() -> Console:
    """Build a console on stderr; rich reads NO_COLOR, TERM and the terminal itself."""
    from restkv_local.cli._harmless_console import HarmlessConsole

    return HarmlessConsole(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def stdout_console() -> Console:
    """Build a console on stdout, for answers that are tables."""
    from restkv_local.cli._harmless_console import HarmlessConsole

    return HarmlessConsole(highlight=False, markup=False, emoji=False)


def print_note(text: str, *, style: str | None = None) -> None:
    """Print one line for the person at the terminal, on stderr."""
    stderr_console().print(text, style=style)


def print_error(text: str) -> None:
    """Print ``error: ...`` as one line on stderr, whatever the text holds."""
    print_note(f"error: {' '.join(text.split())}", style="red")


def print_json(value: dict[str, Any]) -> None:
    """Print one object on one line; escaped where stdout cannot hold every character."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(escape_control(json.dumps(value, ensure_ascii=not is_utf8)), flush=True)


def print_text(text: str) -> None:
    """Print a finished text on stdout, as :class:`AnswerWriter` does."""
    with AnswerWriter() as writer:
        writer.write(text)


def fail_usage(text: str) -> NoReturn:
    """Say what is wrong with the command line and end with exit code 2."""
    print_error(text)
    raise typer.Exit(2)


def format_bytes(n_bytes: float) -> str:
    """Write a size in MiB, from 10 GiB on in GiB."""
    mib = n_bytes / MIB
    if mib >= 10 * 1024:
        return f"{mib / 1024:,.1f} GiB"
    return f"{mib:,.1f} MiB" if mib < 10 else f"{mib:,.0f} MiB"


def format_seconds(seconds: float) -> str:
    """Write a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_stats(report: dict[str, Any]) -> str:
    """Write the line that ends every turn.

    Parameters
    ----------
    report : dict
        ``timings``, ``kv`` and ``finish_reason`` as in ``--json``; of a reading without an answer no
        ``predicted_n``.

    Returns
    -------
    str
        One line: tokens, tokens per second, rows kept of rows seen, MiB now and without a budget,
        evictions and what they cost.
    """
    timings, kv = report["timings"], report["kv"]
    events = kv["events"]
    cost = f"score+compact {kv['score_ms'] + kv['compact_ms']:,.0f} ms, "
    parts = [f"prompt {timings['prompt_n']:,} tok {timings['prompt_per_second']:,.1f} t/s"]
    if "predicted_n" in timings:
        parts.append(
            f"gen {timings['predicted_n']:,} tok {timings['predicted_per_second']:,.1f} t/s"
        )
    parts += [
        f"KV {kv['kept']:,.0f}/{kv['seen']:,} kept "
        f"({format_bytes(kv['bytes'])}, full {format_bytes(kv['bytes_full'])})",
        f"{events:,} eviction{'' if events == 1 else 's'}, "
        + cost
        + f"guide {kv['guide_ms']:,.0f} ms",
    ]
    # An answer that did not end by itself is never passed over in silence.
    if report["finish_reason"] in _UNFINISHED:
        parts.append(_UNFINISHED[report["finish_reason"]])
    return " · ".join(parts)


def print_stats(report: dict[str, Any]) -> None:
    """End a turn on stderr: what the engine has to say about it, then the line of numbers."""
    for note in report.get("notes", ()):
        print_note(f"note: {note}")
    # Ctrl-C before the first chunk leaves no numbers.
    line = format_stats(report) if report["timings"] else "cancelled, nothing was read"
    print_note(line, style="dim")


@contextmanager
def show_status(text: str) -> Iterator[Callable[[str], None]]:
    """Show a line for as long as something takes, on a terminal only; yields what changes the line."""
    console = stderr_console()
    if not console.is_interactive:
        yield lambda text: None
        return
    with console.status(text) as status:
        yield status.update


class AnswerWriter:
    """Stream an answer to stdout; its last line ends, also when it breaks off.

    A terminal gets no control characters; a file or a program gets every byte.
    """

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._at_line_start = True

    def __enter__(self) -> AnswerWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the last line, if one was begun."""
        if not self._at_line_start:
            sys.stdout.write("\n")
            sys.stdout.flush()

    def write(self, piece: str) -> None:
        """Write one piece and flush it, so that a pipe sees words as they come."""
        if self._is_terminal:
            piece = strip_control(piece)
        if piece:
            self._at_line_start = piece.endswith("\n")
            sys.stdout.write(piece)
            sys.stdout.flush()


class PrefillBar:
    """Show how far the prompt has been read, with time left; only on a terminal."""

    def __init__(self) -> None:
        self._console = stderr_console()
        self._bar: RichProgress | None = None

    def update(self, progress: Progress) -> None:
        """Take the engine's report of one chunk."""
        if not self._console.is_interactive:
            return
        if self._bar is None:
            # A prompt of one chunk is over before a bar can tell anything.
            if progress.processed >= progress.total:
                return
            self._start(progress.total)
        assert self._bar is not None
        rate = progress.processed / progress.seconds if progress.seconds > 0 else 0.0
        left = (progress.total - progress.processed) / rate if rate else 0.0
        task = self._bar.task_ids[0]
        self._bar.update(
            task,
            completed=progress.processed,
            rate=f"{rate:,.0f} t/s",
            eta=format_seconds(left),
            events=progress.events,
        )

    def stop(self) -> None:
        """Take the bar off the screen; calling it again does nothing."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> PrefillBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self, total: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        # rich's own time-left column needs several updates within seconds; a chunk of a large
        # model can take longer than that, so rate and time left come from the engine's clock.
        self._bar = Progress(
            TextColumn("reading"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} tok"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("ETA {task.fields[eta]}"),
            TextColumn("{task.fields[events]} evictions"),
            console=self._console,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar.add_task("reading", total=total, rate="", eta="", events=0)
        self._bar.start()
