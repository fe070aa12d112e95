"""The conversation at a terminal: messages go to the model, slash commands never do."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from restkv_local.cli._console import (
    AnswerWriter,
    format_bytes,
    format_stats,
    print_error,
    print_note,
    print_stats,
)
from restkv_local.cli._input import read_documents
from restkv_local.cli._turn import run_answer, say_history

from restkv_local.chat.session_file import session_path
from restkv_local.errors import ConfigError, InputError, RestKVError, SessionFileError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from restkv_local.chat.session import ChatSession
    from restkv_local.documents import Document

PROMPT = ">>> "
CONTINUATION = "... "
# prompt_toolkit does not paint a space without a style at the end of a line; programs that drive
# a terminal wait for the whole prompt. The default colour is a style that looks like none.
_STYLED = "fg:ansidefault"
QUOTES = '"""'

HELP = '''\
/help, /?            this list
/read FILE           attach a text, PDF, DOCX, EPUB or HTML file to your next message
/undo [N]            forget the last turn, or the last N
/regen               answer the last question again
/edit [TEXT]         ask the last question in other words
/reread [QUESTION]   read everything again, guided by this question or the last one, and answer it
/save [FILE]         keep the conversation in a file; without FILE in its session
/load FILE           go on with a conversation from a file
/budget N            keep N rows per layer and KV head
/policy NAME [ALLOC] evict by other rules; `restkv policies` lists them
/context             what the cache holds
/stats               the last turn in numbers
/clear               forget the conversation
/exit, /quit, /bye   leave (Ctrl-D too)

Several lines: begin with """ and close with """, end a line with \\, or press Alt-Enter.
A paste is one message. //word sends /word to the model.
Ctrl-C stops an answer and keeps the conversation; at an empty prompt, twice leaves with 130.'''

# One word after the slash. More slashes in it make a path, a star makes a C comment.
_COMMAND = re.compile(r"/(\?|[A-Za-z][\w-]*)(?=\s|$)")


class Reader(Protocol):
    """Where messages come from."""

    line_was_empty: bool

    def read(self) -> str:
        """Return one message; EOFError at its end, KeyboardInterrupt on Ctrl-C."""
        ...

    def edit(self, text: str) -> str:
        """Let a message be changed; return it. Raises as :meth:`read` does."""
        ...


def run_repl(
    session: ChatSession, documents: Sequence[str | Document] = (), path: Path | None = None
) -> int:
    """Hold a conversation at the terminal.

    Parameters
    ----------
    session : ChatSession
        The conversation, new or taken up again.
    documents : sequence of str or Document
        Texts that go with the first message.
    path : Path, optional
        Where the conversation is saved whenever it changed.

    Returns
    -------
    int
        Exit code: 0 on Ctrl-D or /exit, 130 on Ctrl-C twice at an empty prompt.
    """
    return Repl(session, TerminalReader(), documents, path).run()


def is_open_block(text: str) -> bool:
    """Tell whether a message began with three quotes and has not closed them."""
    start = text.lstrip()
    return start.startswith(QUOTES) and QUOTES not in start[len(QUOTES) :]


def strip_block(text: str) -> str | None:
    """Return what stands between the quotes of a block, None when the text is not one."""
    body = text.strip()
    if len(body) < 2 * len(QUOTES) or body.count(QUOTES) != 2:
        return None
    if not (body.startswith(QUOTES) and body.endswith(QUOTES)):
        return None
    return body[len(QUOTES) : -len(QUOTES)].strip("\n")


class Repl:
    """One conversation: reads a message, runs a command or a turn, until told to leave."""

    def __init__(
        self,
        session: ChatSession,
        reader: Reader,
        documents: Sequence[str | Document] = (),
        path: Path | None = None,
    ) -> None:
        self._session = session
        self._reader = reader
        self._pending = list(documents)
        self._path = path
        self._n_turns = 0
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "?": self._help,
            "read": self._read,
            "undo": self._undo,
            "regen": self._regen,
            "edit": self._edit,
            "reread": self._reread,
            "save": self._save,
            "load": self._load,
            "budget": self._budget,
            "policy": self._policy,
            "context": self._context,
            "stats": self._stats,
            "clear": self._clear,
            "exit": self._exit,
            "quit": self._exit,
            "bye": self._exit,
        }

    def run(self) -> int:
        """Loop until Ctrl-D, /exit, or Ctrl-C twice; return the exit code."""
        if self._pending:
            self._say_pending()
        else:
            print_note("/help lists the commands", style="dim")
        was_interrupted = False
        while True:
            try:
                text = self._reader.read()
                was_interrupted = False
                self._outlive_disk(text)
            except EOFError:
                return 0
            except KeyboardInterrupt:
                # A line thrown away is not a wish to leave, however often it happens.
                if was_interrupted and self._reader.line_was_empty:
                    return 130
                was_interrupted = True
                print_note("use Ctrl-D or /exit to leave; Ctrl-C again leaves too", style="dim")
            except RestKVError as error:
                print_error(str(error))

    def _outlive_disk(self, text: str) -> None:
        try:
            self.handle(text)
        except OSError as error:
            print_error(f"{error.filename or 'the system'}: {error.strerror or error}")
        except MemoryError:
            print_error("there is not enough memory for that; the conversation goes on as it was")

    def handle(self, text: str) -> None:
        """Run a command or send a message.

        Raises
        ------
        EOFError
            The command was /exit.
        RestKVError
            The command or the turn failed; the conversation goes on.
        """
        quoted = strip_block(text)
        if quoted is not None:
            self._send(quoted)
            return
        text = text.strip()
        if text.startswith("//"):
            self._send(text[1:] if re.match(r"//\w", text) else text)
        elif text.startswith("/") and (_COMMAND.match(text) or "\n" not in text):
            self._run_command(text)
        else:
            # A paste of several lines may begin with a path or a comment.
            self._send(text)

    def _run_command(self, text: str) -> None:
        word, *rest = text[1:].split(maxsplit=1) or [""]
        command = self._commands.get(word.lower())
        if command is None:
            raise InputError(
                f"unknown command /{word}{self._nearest(word)}; /help lists the commands, "
                "// sends a line that begins with a slash"
            )
        if "\n" in text:
            raise InputError(f"/{word} stands on a line of its own; nothing was sent")
        argument = rest[0] if rest else ""
        if argument and command in (
            self._help, self._regen, self._context, self._stats, self._clear, self._exit,
        ):  # fmt: skip
            raise InputError(f"/{word} takes no argument; got {argument!r}")
        command(argument)

    def _nearest(self, word: str) -> str:
        near = difflib.get_close_matches(word.lower(), self._commands, n=1, cutoff=0.5)
        return f"; did you mean /{near[0]}?" if near else ""

    def _send(self, text: str) -> None:
        if not text.strip():
            return
        documents, self._pending = self._pending, []
        n_turns = len(self._session.turns)
        try:
            self._answer(partial(self._session.send, text, documents=documents))
        finally:
            if len(self._session.turns) == n_turns:
                # Ctrl-C or an error before anything was read: the files belong to the next message.
                self._pending = documents

    def _answer(self, start: Callable[..., Iterator[str]]) -> None:
        """Stream an answer, end it with its line of numbers, save the conversation."""
        try:
            with AnswerWriter() as writer:
                run_answer(start, writer.write)
        finally:
            self._keep()
        self._n_turns += 1
        print_stats(self._session.report.to_json())

    def _keep(self) -> None:
        """Save the conversation where it belongs; a full disk does not end it."""
        if self._path is None:
            return
        try:
            self._session.save(self._path, replace_any=False)
        except SessionFileError as error:
            print_error(str(error))

    def _help(self, argument: str) -> None:
        print_note(HELP)

    def _read(self, argument: str) -> None:
        path = _unquote(argument)
        if not path:
            raise InputError("/read needs a file: /read FILE")
        if path == "-":
            raise InputError("/read - would read this terminal; name a file")
        self._pending += read_documents([path])
        self._say_pending()

    def _say_pending(self) -> None:
        n_files, n_chars = len(self._pending), sum(map(_n_characters, self._pending))
        print_note(
            f"{n_files} text{'' if n_files == 1 else 's'}, {n_chars:,} characters, "
            "will go with your next message",
            style="dim",
        )

    def _undo(self, argument: str) -> None:
        n = _whole_number(argument or "1", "/undo [N]")
        way = self._session.undo(n)
        self._keep()
        print_note(f"{n} turn{'' if n == 1 else 's'} undone: {way}", style="dim")

    def _regen(self, argument: str) -> None:
        self._answer(self._session.regenerate)

    def _edit(self, argument: str) -> None:
        if not self._session.turns:
            raise InputError("nothing was asked yet: ask first")
        text = argument
        if not text:
            try:
                text = self._reader.edit(self._session.turns[-1].question)
            except (EOFError, KeyboardInterrupt):
                text = ""
        if not text.strip():
            print_note("nothing was changed", style="dim")
            return
        quoted = strip_block(text)
        self._answer(partial(self._session.edit, text if quoted is None else quoted))

    def _reread(self, argument: str) -> None:
        self._answer(partial(self._session.reread, argument))

    def _save(self, argument: str) -> None:
        path = _path(argument) if argument else self._path
        if path is None:
            raise InputError("/save needs a file: /save FILE, or begin with --session NAME")
        self._session.save(path, replace_any=bool(argument))
        print_note(f"saved in {path}, {format_bytes(path.stat().st_size)}", style="dim")

    def _load(self, argument: str) -> None:
        if not argument:
            raise InputError("/load needs a file or a session's name: /load FILE")
        say_history(self._session, self._session.load(_find_session(argument)))
        self._pending.clear()
        self._n_turns = 0
        if self._path is not None:
            # The session that was open is another conversation: it must not be written over.
            print_note(f"{self._path} stays as it was; /save keeps this conversation", style="dim")
            self._path = None

    def _budget(self, argument: str) -> None:
        if not argument:
            raise InputError("/budget needs a number of rows: /budget N")
        way = self._session.set_budget(argument)
        self._keep()
        print_note(f"budget {self._session.context().budget or argument}: {way}", style="dim")

    def _policy(self, argument: str) -> None:
        policy, *rest = argument.split()[:3] or [""]
        if not policy or len(rest) > 1:
            raise InputError("/policy needs a name: /policy NAME [ALLOCATION]")
        way = self._session.set_policy(policy, *rest)
        self._keep()
        print_note(f"policy {argument}: {way}", style="dim")

    def _context(self, argument: str) -> None:
        view = self._session.context()
        if not view.capacity:
            print_note(f"nothing was read yet, budget {self._session.llama.engine.config.budget}")
            return
        print_note(
            f"KV {view.kept:,.0f}/{view.seen:,} kept, budget {view.budget:,}, "
            f"capacity {view.capacity:,}, pinned {view.n_pinned:,}\n"
            f"evicted {view.evicted:,.0f} in {view.events:,} evictions, turns {view.n_turns:,}\n"
            f"memory {format_bytes(view.bytes)}, full {format_bytes(view.bytes_full)}"
        )

    def _stats(self, argument: str) -> None:
        report = self._session.report.to_json()
        if not self._n_turns or not report["timings"]:
            print_note("no turn yet")
            return
        timings, kv = report["timings"], report["kv"]
        print_note(
            f"{format_stats(report)}\n"
            f"prompt {timings['prompt_ms']:,.0f} ms, {timings['cache_n']:,} tok were in the cache; "
            f"answer {timings['predicted_ms']:,.0f} ms, ended by {report['finish_reason']}\n"
            f"policy {kv['policy']}, allocation {kv['allocation']}, prefill {kv['prefill']}, "
            f"positions {kv['positions']}\n"
            f"budget {kv['budget']:,}, capacity {kv['capacity']:,}, peak {kv['peak']:,.0f}, "
            f"evicted {kv['evicted']:,.0f}\n"
            f"score {kv['score_ms']:,.0f} ms, compact {kv['compact_ms']:,.0f} ms, "
            f"guide {kv['guide_ms']:,.0f} ms"
        )

    def _clear(self, argument: str) -> None:
        self._session.clear()
        self._pending.clear()
        self._n_turns = 0
        self._keep()
        print_note("the conversation is forgotten", style="dim")

    def _exit(self, argument: str) -> None:
        raise EOFError


class TerminalReader:
    """Reads messages with prompt_toolkit; prompts go to stderr, answers alone to stdout."""

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output

        self.line_was_empty = True
        # `restkv-chat MODEL > answers.txt` still shows its prompts.
        stream = sys.stderr if sys.stderr.isatty() else sys.stdout
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            prompt_continuation=[(_STYLED, CONTINUATION)],
            key_bindings=self._bindings(),
            output=create_output(stream),
        )

    def read(self) -> str:
        """Return one message, several lines of it where quotes, backslash or paste say so."""
        return self._session.prompt([(_STYLED, PROMPT)])

    def edit(self, text: str) -> str:
        """Let a message be changed in place; return it."""
        return self._session.prompt([(_STYLED, PROMPT)], default=text)

    def _bindings(self) -> KeyBindings:
        from prompt_toolkit.enums import DEFAULT_BUFFER
        from prompt_toolkit.filters import has_focus
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()
        at_message = has_focus(DEFAULT_BUFFER)

        @keys.add("enter", filter=at_message)
        def _enter(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if is_open_block(buffer.text):
                buffer.newline(copy_margin=False)
            elif buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
                # The backslash goes now, so that one inside a paste is never taken for ours.
                buffer.delete_before_cursor()
                buffer.newline(copy_margin=False)
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=at_message)
        def _alt_enter(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @keys.add("c-c")
        @keys.add("<sigint>")
        def _interrupt(event: KeyPressEvent) -> None:
            self.line_was_empty = not event.app.layout.get_buffer_by_name(DEFAULT_BUFFER).text  # type: ignore[union-attr]
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

        return keys


def _unquote(argument: str) -> str:
    """Return a path without the quotes that a terminal puts around a dropped file."""
    path = argument.strip()
    quoted = len(path) > 1 and path[0] == path[-1] and path[0] in "'\""
    return path[1:-1] if quoted else path


def _path(argument: str) -> Path:
    return Path(os.path.expanduser(_unquote(argument)))


def _find_session(argument: str) -> Path:
    """Return the file of that name, or else the session of that name."""
    path = _path(argument)
    if not os.path.exists(path):
        with suppress(ConfigError):  # no name of a session
            named = session_path(_unquote(argument))
            if named.exists():
                return named
    return path


def _whole_number(text: str, usage: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise InputError(f"{usage} takes a whole number; got {text!r}")
    return int(text)


def _n_characters(document: str | Document) -> int:
    return len(document if isinstance(document, str) else document.text)
