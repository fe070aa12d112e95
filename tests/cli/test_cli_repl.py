"""The conversation: commands never reach the model, Ctrl-C and Ctrl-D do what is said."""

import errno
import signal
import sys
import time
from pathlib import Path

import pytest
from cli_fakes import FakeSession
from restkv_local.cli.repl import Repl, is_open_block, strip_block

FAKE = str(Path(__file__).with_name("cli_fakes.py"))


class ScriptedReader:
    """Says one message after the other; an exception class is raised instead."""

    def __init__(self, *messages):
        self._messages = iter(messages)
        self.line_was_empty = True

    def read(self):
        message = next(self._messages, EOFError)
        if isinstance(message, str):
            return message
        # (KeyboardInterrupt, text that stood on the line)
        error, text = message if isinstance(message, tuple) else (message, "")
        self.line_was_empty = not text
        raise error


def talk(*messages, session=None, documents=()):
    return Repl(session or FakeSession(), ScriptedReader(*messages), documents).run()


def test_messages_go_to_the_model(session, capsys):
    assert talk("first", "second", session=session) == 0
    assert [text for text, _ in session.sent] == ["first", "second"]
    out, err = capsys.readouterr()
    assert out == "heard: first\nheard: second\n"
    assert err.count("KV 2,048/31,204 kept") == 2


@pytest.mark.parametrize(
    "text",
    ["/exot", "/", "/Hello there", "/help me", "/read", "/read -", "/etc/passwd", "/clear\nall"],
)
def test_a_slash_command_never_reaches_the_model(session, capsys, text):
    assert talk(text, session=session) == 0
    assert session.sent == []
    assert capsys.readouterr().err.count("error: ") == 1


@pytest.mark.parametrize(
    ("text", "nearest"), [("/exot", "/exit"), ("/contex", "/context"), ("/sats", "/stats")]
)
def test_an_unknown_command_names_the_nearest(capsys, text, nearest):
    talk(text)
    err = capsys.readouterr().err
    assert f"unknown command {text}; did you mean {nearest}?" in err


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("//help", "/help"),
        ("// a comment", "// a comment"),
        ('"""/help"""', "/help"),
        ('"""\ntwo\nlines\n"""', "two\nlines"),
        ("/* C */\nint main(void);", "/* C */\nint main(void);"),
        ("/etc/passwd\nwhat is this?", "/etc/passwd\nwhat is this?"),
        ('"""doc"""\ncode = 1', '"""doc"""\ncode = 1'),
        ("  spaces  ", "spaces"),
    ],
)
def test_what_is_sent(session, text, sent):
    talk(text, session=session)
    assert session.sent == [(sent, [])]


@pytest.mark.parametrize("text", ["", "   ", "\n", '""""""'])
def test_an_empty_message_is_not_sent(session, text):
    talk(text, session=session)
    assert session.sent == []


@pytest.mark.parametrize("command", ["/exit", "/quit", "/bye", "/EXIT", EOFError])
def test_ways_to_leave(session, command):
    assert talk(command, "never", session=session) == 0
    assert session.sent == []


@pytest.mark.parametrize("command", ["/help", "/?"])
def test_help_names_every_command(capsys, command):
    talk(command)
    out, err = capsys.readouterr()
    assert out == ""
    for name in ("/help", "/?", "/exit", "/quit", "/bye", "/clear", "/context", "/stats", "/read"):
        assert name in err


def test_ctrl_c_twice_on_an_empty_line_leaves_with_130(capsys):
    assert talk(KeyboardInterrupt, KeyboardInterrupt, "never") == 130
    assert "Ctrl-D or /exit" in capsys.readouterr().err


def test_ctrl_c_that_clears_a_line_never_leaves(session):
    typed = (KeyboardInterrupt, "half a line")
    assert talk(KeyboardInterrupt, typed, typed, "still here", session=session) == 0
    assert [text for text, _ in session.sent] == ["still here"]


def test_a_message_between_two_ctrl_c_forgets_the_first(session):
    assert talk(KeyboardInterrupt, "here", KeyboardInterrupt, "there", session=session) == 0
    assert len(session.sent) == 2


def test_an_error_keeps_the_conversation(session, capsys):
    assert talk("boom", "again", session=session) == 0
    assert len(session.sent) == 2
    assert "error: no free rows are left" in capsys.readouterr().err


def test_read_attaches_files_to_the_next_message_only(session, capsys, tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two words.txt"
    one.write_text("text one", encoding="utf-8")
    two.write_text("text two", encoding="utf-8")
    talk(f"/read {one}", f'/read "{two}"', "why?", "and?", session=session)
    assert session.sent == [("why?", ["text one", "text two"]), ("and?", [])]
    assert "2 texts, 16 characters" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["boom", "unheard"])
def test_files_stay_attached_when_nothing_was_read(session, tmp_path, text):
    file = tmp_path / "one.txt"
    file.write_text("text one", encoding="utf-8")
    talk(f"/read {file}", text, "again", "and?", session=session)
    assert session.sent == [(text, ["text one"]), ("again", ["text one"]), ("and?", [])]


@pytest.mark.parametrize("text", ["burst", "interrupted"])
def test_files_that_were_read_are_not_read_again(session, tmp_path, text):
    file = tmp_path / "one.txt"
    file.write_text("text one", encoding="utf-8")
    talk(f"/read {file}", text, "again", session=session)
    assert session.sent == [(text, ["text one"]), ("again", [])]


def test_read_names_a_missing_file(session, capsys, tmp_path):
    talk(f"/read {tmp_path / 'none.txt'}", session=session)
    assert "none.txt: no such file" in capsys.readouterr().err


def test_files_of_the_command_line_go_with_the_first_message(session):
    talk("why?", "and?", session=session, documents=["text"])
    assert session.sent == [("why?", ["text"]), ("and?", [])]


def test_clear(session, capsys, tmp_path):
    file = tmp_path / "one.txt"
    file.write_text("text one", encoding="utf-8")
    talk("why?", f"/read {file}", "/clear", "/stats", "again", session=session)
    assert session.n_cleared == 1
    assert session.sent == [("why?", []), ("again", [])]
    assert "no turn yet" in capsys.readouterr().err


def test_context_and_stats_go_to_stderr(capsys):
    talk("/context", "/stats", "why?", "/stats")
    out, err = capsys.readouterr()
    assert out == "heard: why?\n"
    assert "KV 2,048/31,204 kept, budget 2,048, capacity 2,816, pinned 31" in err
    assert "no turn yet" in err
    assert "policy restkv, allocation uniform, prefill bounded, positions compact" in err


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ('"""', True),
        ('"""two\nlines', True),
        ('  """two', True),
        ('"""two"""', False),
        ('"""two\nlines"""', False),
        ('"""doc"""\ncode', False),
        ('say """', False),
        ("", False),
    ],
)
def test_a_block_is_open_until_its_quotes_close(text, is_open):
    assert is_open_block(text) is is_open


def test_half_a_block_is_no_block():
    assert strip_block('"""') is None
    assert strip_block('""""') is None
    assert strip_block('"""""') is None


# At a real terminal


@pytest.fixture
def terminal(monkeypatch):
    """Start the fake `restkv-chat` on a pseudo-terminal; ends with its process."""
    pexpect = pytest.importorskip("pexpect")
    monkeypatch.setenv("TERM", "xterm-256color")
    # No terminal answers the cursor query; without this prompt_toolkit waits and warns.
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")
    children = []

    def start(*args, **env):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        child = pexpect.spawn(
            sys.executable,
            [FAKE, "model.gguf", *args],
            encoding="utf-8",
            timeout=20,
            dimensions=(40, 120),
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.close(force=True)


def prompted(child):
    child.expect_exact(">>> ")
    return child


def ended(child):
    import pexpect

    child.expect(pexpect.EOF)
    child.close()
    assert "Traceback" not in child.before
    return child.exitstatus


@pytest.mark.parametrize("enter", ["\r", "\n"], ids=["enter", "linefeed"])
def test_pty_message_and_answer(terminal, enter):
    child = prompted(terminal())
    child.send("hello" + enter)
    child.expect_exact("heard: hello")
    child.expect_exact("KV 2,048/31,204 kept")
    prompted(child).send("/exit" + enter)
    assert ended(child) == 0


def test_pty_ctrl_d_on_an_empty_line_leaves_with_0(terminal):
    child = prompted(terminal())
    child.send("\x04")
    assert ended(child) == 0


def test_pty_ctrl_c_clears_the_line_and_hints_then_leaves_with_130(terminal):
    child = prompted(terminal())
    child.send("half a line\x03")
    child.expect_exact("Ctrl-D or /exit")
    prompted(child).send("whole\r")
    child.expect_exact("heard: whole")
    prompted(child).send("\x03")
    child.expect_exact("Ctrl-D or /exit")
    prompted(child).send("\x03")
    assert ended(child) == 130


def test_pty_block(terminal):
    child = prompted(terminal())
    child.send('"""one\r')
    child.expect_exact("... ")
    child.send('two"""\r')
    child.expect_exact("heard: one\r\ntwo")
    prompted(child)


def test_pty_trailing_backslash(terminal):
    child = prompted(terminal())
    child.send("one\\\r")
    child.expect_exact("... ")
    child.send("two\r")
    child.expect_exact("heard: one\r\ntwo")
    prompted(child)


def test_pty_alt_enter_begins_a_line(terminal):
    child = prompted(terminal())
    child.send("one\x1b\rtwo\r")
    child.expect_exact("heard: one\r\ntwo")
    prompted(child)


def test_pty_bracketed_paste_is_one_message(terminal):
    child = prompted(terminal())
    child.send("\x1b[200~one\\\rtwo\r/exit\rthree\x1b[201~")
    child.expect_exact("three")
    child.send("\r")
    # The backslash inside the paste stays, and its slash line is text.
    child.expect_exact("heard: one\\\r\ntwo\r\n/exit\r\nthree")
    prompted(child)


@pytest.mark.parametrize("message", ["slow", "slow prefill"])
def test_pty_ctrl_c_stops_the_turn_and_keeps_the_session(terminal, message):
    child = prompted(terminal())
    child.send(message + "\r")
    child.expect_exact("reading" if "prefill" in message else "word3")
    child.sendintr()
    started = time.monotonic()
    child.expect_exact("cancelled")
    assert time.monotonic() - started < 1
    prompted(child).send("next\r")
    child.expect_exact("heard: next")
    prompted(child).send("\x04")
    assert ended(child) == 0


def test_pty_signal_at_the_prompt_is_a_ctrl_c(terminal):
    child = prompted(terminal())
    child.kill(signal.SIGINT)
    child.expect_exact("Ctrl-D or /exit")
    prompted(child)


def test_pty_progress_bar_has_an_eta(terminal):
    child = prompted(terminal())
    child.send("slow prefill\r")
    child.expect(r"reading .*60%.* 3/5 tok .*1 t/s .*ETA.* 0:02")
    child.expect_exact("read\r\n")
    prompted(child)


def test_pty_an_answer_cannot_command_the_terminal(terminal):
    child = prompted(terminal())
    child.send("escape\r")
    child.expect_exact("a]0;titleb\r\n")


def test_pty_dumb_terminal_gets_no_escape_codes_from_us(terminal):
    child = prompted(terminal(TERM="dumb"))
    child.send("prefill\r")
    child.expect_exact("read\r\n")
    assert "reading" not in child.before
    child.expect_exact("guide 900 ms")
    assert "\x1b" not in child.before


def test_pty_no_color(terminal):
    child = prompted(terminal(NO_COLOR="1"))
    child.send("/exot\r")
    child.expect_exact("error: unknown command")
    assert "\x1b[31m" not in child.before


def test_pty_one_shot_answers_and_ends(terminal):
    child = terminal("-p", "why?")
    child.expect_exact("heard: why?")
    assert ended(child) == 0


def test_pty_answers_alone_go_to_a_file(terminal, tmp_path):
    pexpect = pytest.importorskip("pexpect")
    out = tmp_path / "answers.txt"
    child = pexpect.spawn(
        "/bin/sh",
        ["-c", f'exec "{sys.executable}" "{FAKE}" model.gguf > "{out}"'],
        encoding="utf-8",
        timeout=20,
    )
    prompted(child).send("why?\r")
    prompted(child).send("\x04")
    assert ended(child) == 0
    assert out.read_text(encoding="utf-8") == "heard: why?\n"


def test_a_conversation_outlives_a_disk(session, capsys, monkeypatch):
    def fail(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")

    monkeypatch.setattr(session, "send", fail)
    assert talk("first", "/undo " + "9" * 5000, session=session) == 0
    err = capsys.readouterr().err
    assert "error: /tmp/x: No space left on device" in err
    assert err.count("error: ") == 2
