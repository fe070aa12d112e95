"""Conversations that last, from the command line: real library, tiny model."""

import json
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
from restkv_local.cli.main import chat_main, main
from restkv_local.cli.repl import HELP, Repl

from restkv_local import ChatSession, Llama
from restkv_local.chat.session_file import session_path
from tests import builders

pytestmark = pytest.mark.native

MODEL = builders.llama(n_head=9, n_head_kv=3, head_dim=64, n_embd=64)
SMALL = ["--budget", "96", "-ub", "64", "--n-guide", "16", "--kernel", "5", "-n", "12", "-t", "1"]
TEXT = "The ferry left the quay in the morning. " * 8


@pytest.fixture(autouse=True)
def _own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def model(tmp_path):
    return MODEL.write(tmp_path / "tiny.gguf")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process, standard input a terminal."""

    def run_(command, *args):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, closed=False))
        with pytest.raises(SystemExit) as end:
            command([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=end.value.code or 0, out=out, err=err)

    return run_


@pytest.fixture
def ask(run, model):
    """Ask the tiny model once, as `restkv-chat MODEL -p TEXT` does."""
    return lambda text, *args: run(chat_main, model, *SMALL, "-p", text, *args)


def test_a_session_goes_on_from_one_command_to_the_next(ask, run, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text(TEXT)
    first = ask("what?", "-f", book, "--session", "sea", "--json", "--temp", "0")
    assert first.code == 0, first.err
    seen = json.loads(first.out)["kv"]["seen"]
    second = ask("why?", "--session", "sea", "--json")
    report = json.loads(second.out)
    assert "1 turn, by snapshot; last question: what?" in second.err
    assert report["timings"]["prompt_n"] < 40
    assert report["kv"]["seen"] > seen
    shown = json.loads(run(main, "sessions", "show", "sea", "--json").out)
    assert (shown["turns"], shown["last_question"]) == (2, "why?")
    (document,) = shown["documents"]
    assert (document["name"], document["characters"]) == (str(book), len(TEXT))


def test_options_given_again_count_or_are_refused(ask):
    ask("what?", "--session", "sea", "--temp", "0")
    before = session_path("sea").read_bytes()
    refused = ask("why?", "--session", "sea", "-ctv", "q8_0")
    assert refused.code == 2
    assert refused.err.startswith("error: type_v='q8_0' does not fit the session, whose cache")
    assert refused.err.count("\n") == 1
    prompted = ask("why?", "--session", "sea", "-sys", "be brief")
    assert prompted.code == 2
    assert "has a system prompt of its own" in prompted.err
    assert session_path("sea").read_bytes() == before
    report = json.loads(ask("why?", "--session", "sea", "--policy", "snapkv", "--json").out)
    assert report["kv"]["policy"] == "snapkv"
    assert json.loads(ask("who?", "--session", "sea", "--json").out)["kv"]["policy"] == "snapkv"


def test_another_model_and_a_broken_file_end_in_one_line_and_stay_as_they_are(ask, run, tmp_path):
    ask("what?", "--session", "sea")
    file = session_path("sea")
    before = file.read_bytes()
    other = builders.llama(seed=5).write(tmp_path / "other.gguf")
    refused = run(chat_main, other, "-p", "why?", "--session", "sea")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "other.gguf is another model" in refused.err
    assert file.read_bytes() == before
    file.write_bytes(before[:-700])
    refused = ask("why?", "--session", "sea")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "is damaged, cut short" in refused.err
    assert file.read_bytes() == before[:-700]
    assert "cannot be read" in run(main, "sessions", "list").out


def test_a_session_whose_question_is_no_text_is_one_line_among_the_others(run, monkeypatch):
    """Its traceback hid all of them."""
    meta = {
        "model": "m",
        "saved": "2026-11-28T12:00:00",
        "turns": [{"question": 5, "documents": []}],
    }
    monkeypatch.setattr("restkv_local.chat.session_file.read_meta", lambda path, kind: meta)
    session_path("sea").parent.mkdir(parents=True, exist_ok=True)
    session_path("sea").write_bytes(b"x")
    listed = run(main, "sessions", "list")
    assert (listed.code, listed.out.count("cannot be read")) == (0, 1)


@pytest.mark.parametrize("name", ["../sea", ".", ""])
def test_a_name_that_is_a_path_is_refused(ask, name):
    refused = ask("what?", "--session", name)
    assert refused.code == 2
    assert "a session's name is up to 100" in refused.err


def test_long_texts_are_kept_unless_told_not_to(ask, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text(TEXT * 12)
    folder = tmp_path / "cache" / "restkv-local" / "readings"
    assert ask("what?", "-f", book, "--no-cache").code == 0
    assert not folder.exists()
    first = ask("what?", "-f", book, "--temp", "0")
    assert len(list(folder.iterdir())) == 1
    second = ask("what?", "-f", book, "--temp", "0")
    assert second.out == first.out
    assert "read before: " in second.err
    assert "prompt 0 tok" in second.err
    assert "read before" not in ask("what?", "-f", book, "--no-cache").err


def test_list_show_and_remove(ask, run):
    assert "--session NAME begins one" in run(main, "sessions", "list").err
    for name in ("sea", "land"):
        ask("what is it?", "--session", name)
    listed = run(main, "sessions", "list")
    assert listed.out.index("land") < listed.out.index("sea")  # the one used last comes first
    assert "what is it?" in listed.out
    names = json.loads(run(main, "sessions", "list", "--json").out)["sessions"]
    assert [one["name"] for one in names] == ["land", "sea"]
    shown = run(main, "sessions", "show", "sea").out
    assert "turns      1" in shown
    refused = run(main, "sessions", "rm", "sea", "sky")
    assert refused.code == 1
    assert refused.err == "error: there is no session 'sky'; there are: land, sea\n"
    assert run(main, "sessions", "rm", "sea", "land").code == 0
    assert not session_path("sea").exists()
    assert run(main, "sessions", "show", "sea").code == 1


def test_a_question_of_another_day_cannot_command_the_terminal(ask, run):
    evil = "what\x1b]0;OWNED\x07 is\x9b2J it?"
    assert ask(evil, "--session", "sea").code == 0
    went_on = ask("why?", "--session", "sea").err
    assert "last question: what]0;OWNED is2J it?" in went_on
    ask(evil, "--session", "sea")
    for command in (["list"], ["show", "sea"]):
        assert "what]0;OWNED is2J it?" in run(main, "sessions", *command).out
    told = run(main, "sessions", "show", "sea", "--json").out
    assert "\x9b" not in told
    assert json.loads(told)["last_question"] == evil


# At the prompt


class Script:
    """Says one message after the other; ``/edit`` gets the text after a bar."""

    line_was_empty = True

    def __init__(self, *messages):
        self._messages = iter(messages)
        self.offered = None

    def read(self):
        message = next(self._messages, None)
        if message is None:
            raise EOFError
        return message

    def edit(self, text):
        self.offered = text
        message = next(self._messages)
        if not message:
            raise KeyboardInterrupt
        return message


@pytest.fixture
def talk(model, capsys):
    """Hold a conversation with the tiny model; return what stderr got and the session."""
    llamas = []

    def talk_(*messages, path=None, documents=(), **options):
        small = {"budget": 96, "n_ubatch": 64, "n_guide": 16, "kernel": 5, "n_predict": 8}
        llamas.append(Llama(model, n_threads=1, **small | options))
        session, script = ChatSession(llamas[-1]), Script(*messages)
        if path is not None and path.exists():  # as --session does
            session.load(path)
        assert Repl(session, script, documents, path).run() == 0
        out, err = capsys.readouterr()
        return SimpleNamespace(out=out, err=err, session=session, script=script)

    yield talk_
    for llama in llamas:
        llama.close()


def questions(said):
    return [turn.question for turn in said.session.turns]


def test_every_command_is_in_the_help(talk):
    said = talk("/help")
    for word in ("undo", "regen", "edit", "reread", "save", "load", "budget", "policy"):
        assert f"/{word}" in HELP
        assert f"/{word}" in said.err


def test_undo_regen_and_edit(talk):
    said = talk(
        "one", "two", "three", "/undo", "/undo 1", "four", "/regen", "/edit", "five", "/edit six"
    )
    assert "error" not in said.err
    assert said.err.count("1 turn undone: by snapshot") == 2
    assert "note: answered again: by snapshot, 0 tokens read" in said.err
    assert said.script.offered == "four"
    assert said.err.count("note: asked in other words: by snapshot") == 2
    assert questions(said) == ["one", "six"]


def test_before_anything_is_read_the_context_is_the_budget(talk):
    said = talk("/context", "/budget 25%", "/context")
    assert "nothing was read yet, budget 25%" in said.err
    assert "budget 0" not in said.err


def test_an_edit_that_is_broken_off_changes_nothing(talk):
    said = talk("one", "/edit", "", "/context")
    assert "nothing was changed" in said.err
    assert questions(said) == ["one"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/undo", "there are 0 turns to undo"),
        ("/undo two", "/undo [N] takes a whole number; got 'two'"),
        ("/regen", "nothing was asked yet"),
        ("/regen now", "/regen takes no argument"),
        ("/edit", "nothing was asked yet"),
        ("/reread", "nothing was asked yet"),
        ("/save", "/save needs a file"),
        ("/load", "/load needs a file"),
        ("/load none", "none does not exist"),
        ("/budget", "/budget needs a number of rows"),
        ("/budget none", "budget must be"),
        ("/policy", "/policy needs a name"),
        ("/policy none", "policy must be one of"),
        ("/policy a b c", "/policy needs a name"),
    ],
)
def test_a_command_that_cannot_be_says_why_in_one_line(talk, command, message):
    said = talk(command)
    assert said.err.count("error: ") == 1
    assert message in said.err


def test_rules_change_and_are_shown(talk):
    said = talk("one", "/budget 128", "/policy snapkv", "/policy h2o", "two", "/stats")
    assert "budget 128: by snapshot" in said.err
    assert "policy snapkv: from the next eviction on" in said.err
    assert "policy h2o: all is read again with the next message" in said.err
    assert "note: the conversation was read again" in said.err
    assert "policy h2o, allocation uniform" in said.err


def test_documents_are_read_again(talk, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text(TEXT)
    said = talk(f"/read {book}", "one", "/reread two", "/reread")
    assert said.err.count("note: guided by this question: the conversation was read again") == 2
    assert questions(said) == ["one", "two"]
    assert said.session.turns[0].documents[0].name == str(book)


def test_save_and_load(talk, tmp_path):
    file = tmp_path / "a file.restkv"
    said = talk("one", "two", f'/save "{file}"', "three", f"/load {file}", "/regen")
    assert f"saved in {file}" in said.err
    assert "2 turns, by snapshot; last question: two" in said.err
    assert questions(said) == ["one", "two"]
    other = talk(f"/load '{file}'", "four")
    assert questions(other) == ["one", "two", "four"]


def test_a_session_is_loaded_by_its_name_too(talk):
    """It was refused with a hint at the list that shows the name."""
    talk("one", path=session_path("sea"))
    assert questions(talk("/load sea", "two")) == ["one", "two"]


def test_a_named_session_is_saved_whenever_it_changed(talk, tmp_path):
    path = tmp_path / "s.restkv"
    talk("one", "two", "/undo", path=path)
    said = talk(f"/load {path}")
    assert questions(said) == ["one"]
    before = path.read_bytes()
    elsewhere = tmp_path / "t.restkv"
    said = talk("three", path=elsewhere)
    kept = elsewhere.read_bytes()
    said = talk(f"/load {path}", "four", path=elsewhere)
    assert "stays as it was" in said.err
    assert (path.read_bytes(), elsewhere.read_bytes()) == (before, kept)
    talk("/clear", path=elsewhere)
    assert "the session has no turns yet" in talk(f"/load {elsewhere}").err


def test_a_full_disk_does_not_end_the_conversation(talk, tmp_path):
    (tmp_path / "file").write_text("")
    said = talk("one", "two", path=tmp_path / "file" / "s.restkv")
    assert said.err.count("error: cannot write") == 2
    assert questions(said) == ["one", "two"]


def test_pty_the_old_question_stands_ready_to_be_changed(model, monkeypatch):
    pexpect = pytest.importorskip("pexpect")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")
    code = "from restkv_local.cli.main import chat_main; chat_main()"
    child = pexpect.spawn(
        sys.executable,
        ["-c", code, str(model), *SMALL, "--session", "sea"],
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 120),
    )
    try:
        child.expect_exact(">>> ")
        child.send("why\r")
        child.expect_exact("gen ")
        child.expect_exact(">>> ")
        child.send("/edit\r")
        child.expect_exact("why")
        child.send(" not\r")
        child.expect_exact("gen ")
        child.expect_exact(">>> ")
        child.send("/exit\r")
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)
    from restkv_local.chat.session_file import read_session

    (turn,) = read_session(session_path("sea")).turns
    assert turn.question == "why not"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("target", ["/dev/full", None], ids=["full", "closed"])
def test_output_that_nobody_takes_is_one_line(tmp_path, target):
    command = f"{shlex.quote(sys.executable)} -c 'from restkv_local.cli.main import main; main()' sessions list --json"
    command += f" > {target}" if target else " >&-"
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True, text=True, timeout=100, env=os.environ | {"XDG_DATA_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == (1 if target else 0)
    assert done.stderr.count("\n") == (1 if target else 0)
    assert not target or "No space left" in done.stderr
