"""Files and standard input: what becomes the message, and the one line when it cannot."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fpdf import FPDF
from restkv_local.cli import _input

FAKE = str(Path(__file__).with_name("cli_fakes.py"))


def only_error(result, code=1):
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    return result.err


def test_a_prompt_alone(run_cli, session):
    result = run_cli("model.gguf", "-p", "why?")
    assert (result.code, result.out) == (0, "heard: why?\n")
    assert session.sent == [("why?", [])]


def test_files_keep_their_order(run_cli, session, tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(f"text {name}", encoding="utf-8")
    run_cli("model.gguf", "-f", tmp_path / "b", "-f", tmp_path / "a", "-p", "why?")
    assert session.sent == [("why?", ["text b", "text a"])]


def test_piped_text_is_put_before_the_prompt(run_cli, session):
    run_cli("model.gguf", "-p", "why?", stdin="a long text\n")
    assert session.sent == [("a long text\n\nwhy?", [])]


def test_piped_text_is_the_prompt(run_cli, session):
    run_cli("model.gguf", stdin="why?\n")
    assert session.sent == [("why?", [])]


def test_piped_question_about_a_file(run_cli, session, tmp_path):
    (tmp_path / "a").write_text("text", encoding="utf-8")
    run_cli("model.gguf", "-f", tmp_path / "a", stdin="why?\n")
    assert session.sent == [("why?", ["text"])]


def test_a_file_alone_is_the_prompt_when_nobody_can_type(run_cli, session, tmp_path):
    (tmp_path / "a").write_text("why?", encoding="utf-8")
    assert run_cli("model.gguf", "-f", tmp_path / "a", stdin="").code == 0
    assert session.sent == [("why?", [])]


def test_dash_reads_stdin_as_a_file(run_cli, session):
    run_cli("model.gguf", "-f", "-", "-p", "why?", stdin="a long text\n")
    assert session.sent == [("why?", ["a long text\n"])]


@pytest.mark.parametrize("stdin", ["", "\n \n"])
def test_nothing_to_ask_is_wrong_usage(run_cli, stdin):
    assert "no prompt" in only_error(run_cli("model.gguf", stdin=stdin), code=2)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_wrong_usage(run_cli, prompt):
    assert "empty" in only_error(run_cli("model.gguf", "-p", prompt), code=2)


def test_dash_twice_is_wrong_usage(run_cli):
    result = run_cli("model.gguf", "-f", "-", "-f", "-", "-p", "why?", stdin="text")
    assert "twice" in only_error(result, code=2)


def test_json_without_a_prompt_is_wrong_usage_even_on_a_terminal(run_cli):
    # stdin is a terminal here: only an answer makes one object, a conversation does not.
    assert "no prompt" in only_error(run_cli("model.gguf", "--json"), code=2)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"caf\xe9 au lait", ["UTF-8", "0xe9", "offset 3"]),
        (b"\xef\xbb\xbfok \xff", ["UTF-8", "0xff", "offset 6"]),
        (b"\x7fELF\x02\x00\x01", ["binary", "0x00", "offset 5"]),
        (b"\x89PNG\r\n\x1a\n\x00", ["UTF-8", "0x89", "offset 0"]),
        ("text".encode("utf-16"), ["UTF-16", "offset 0"]),
        (b"", ["empty"]),
        (b"\n\n", ["empty"]),
    ],
)
def test_a_file_that_is_no_text(run_cli, tmp_path, data, parts):
    file = tmp_path / "novel.txt"
    file.write_bytes(data)
    line = only_error(run_cli("model.gguf", "-f", file, "-p", "why?"))
    assert "novel.txt" in line
    for part in parts:
        assert part in line


def test_piped_bytes_that_are_no_text(run_cli):
    line = only_error(run_cli("model.gguf", "-p", "why?", stdin=b"caf\xe9"))
    assert "standard input" in line
    assert "offset 3" in line


def make_pdf(*pages):
    pdf = FPDF()
    pdf.set_font("Helvetica", size=12)
    for text in pages:
        pdf.add_page()
        pdf.cell(0, 10, text)
    return bytes(pdf.output())


def test_a_pdf_is_read_and_its_notes_go_to_stderr(run_cli, session, tmp_path):
    file = tmp_path / "report.pdf"
    file.write_bytes(make_pdf("Signed by Ada.", ""))
    result = run_cli("model.gguf", "-f", file, "-p", "who?")
    assert session.sent == [("who?", ["Signed by Ada."])]
    assert result.out == "heard: who?\n"
    note = f"note: {file}: page 2 holds no text (scanned?)\n"
    assert note in result.err


def test_a_page_on_stdin_is_read_by_its_content(run_cli, session):
    run_cli("model.gguf", "-f", "-", "-p", "who?", stdin=b"<!doctype html><p>Signed<p>by Ada")
    assert session.sent == [("who?", ["Signed\n\nby Ada"])]


def test_a_prompt_that_is_markup_stays_as_it_is(run_cli, session):
    run_cli("model.gguf", "-p", "what is wrong?", stdin="<html><p>a</div>")
    assert session.sent == [("<html><p>a</div>\n\nwhat is wrong?", [])]


def test_a_broken_document_is_refused_before_the_model_is_loaded(run_cli, tmp_path):
    file = tmp_path / "report.docx"
    file.write_bytes(b"PK\x03\x04 and no more")
    result = run_cli("model.gguf", "-f", file, "-p", "why?")
    assert "report.docx is broken" in only_error(result)
    assert "model" not in result.call


def test_a_missing_file(run_cli, tmp_path):
    result = run_cli("model.gguf", "-f", tmp_path / "none.txt", "-p", "why?")
    assert "no such file" in only_error(result)
    assert "model" not in result.call  # found out before the model was loaded


def test_a_directory(run_cli, tmp_path):
    assert "directory" in only_error(run_cli("model.gguf", "-f", tmp_path, "-p", "why?"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_an_unreadable_file(run_cli, tmp_path):
    file = tmp_path / "secret.txt"
    file.write_text("text", encoding="utf-8")
    file.chmod(0)
    assert "ermission" in only_error(run_cli("model.gguf", "-f", file, "-p", "why?"))


def test_waiting_for_a_silent_pipe_is_said_aloud(monkeypatch, capsys):
    """A parent that leaves a pipe open made the program look hung, with no word of why."""
    monkeypatch.setattr(_input, "SECONDS_BEFORE_NOTE", 0.05)
    reader, writer = os.pipe()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(os.fdopen(reader, "rb")))
    import threading
    import time

    def close_later():
        time.sleep(0.5)
        os.close(writer)

    closer = threading.Thread(target=close_later)
    closer.start()
    assert _input.read_stdin() == b""
    closer.join()
    sys.stdin.close()
    assert "/dev/null" in capsys.readouterr().err


def test_a_closed_stdin_does_not_hang_or_crash():
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" "$1" model.gguf -p hello <&-', sys.executable, FAKE],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "heard: hello\n"), done.stderr


def test_dev_null_and_no_prompt_ends_with_2():
    done = subprocess.run(
        [sys.executable, FAKE, "model.gguf"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no prompt")


def test_a_home_that_is_nobodys_is_part_of_a_missing_files_name(run_cli):
    assert "~nobody-here" in only_error(
        run_cli("model.gguf", "-f", "~nobody-here/a.txt", "-p", "why?")
    )
