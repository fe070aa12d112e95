"""One shot: stdout holds the answer alone, the last stderr line tells what the cache did."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_fakes import make_report
from restkv_local.cli._console import (
    PrefillBar,
    format_bytes,
    format_seconds,
    format_stats,
    print_error,
    print_json,
    print_note,
    print_stats,
    print_text,
    stdout_console,
)

FAKE = str(Path(__file__).with_name("cli_fakes.py"))


def start(*args, **kwargs):
    return subprocess.Popen(
        [sys.executable, FAKE, "model.gguf", *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **kwargs,
    )


def test_stats_line():
    assert format_stats(make_report().to_json()) == (
        "prompt 12,480 tok 412.0 t/s · gen 233 tok 18.4 t/s · "
        "KV 2,048/31,204 kept (45 MiB, full 686 MiB) · "
        "24 evictions, score+compact 310 ms, guide 900 ms"
    )


@pytest.mark.parametrize(
    ("reason", "ending"),
    [
        ("cancelled", " · cancelled"),
        ("length", " · answer cut at -n"),
        ("cache_full", " · answer cut, the cache is full: -n N makes room for N tokens"),
    ],
)
def test_stats_line_says_when_an_answer_did_not_end_by_itself(reason, ending):
    assert format_stats(make_report("", reason).to_json()).endswith(ending)


def test_stats_line_with_one_eviction():
    assert " 1 eviction, " in format_stats(make_report(events=1).to_json())


def test_notes_of_the_engine_are_shown(capsys):
    print_stats({**make_report().to_json(), "notes": ["the conversation was read again"]})
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "note: the conversation was read again"
    assert err[1].startswith("prompt ")


def test_a_turn_stopped_before_its_first_chunk_has_no_numbers(capsys):
    print_stats({"finish_reason": "cancelled", "timings": {}, "kv": {}})
    assert capsys.readouterr().err == "cancelled, nothing was read\n"


def test_stdout_holds_the_answer_alone(run_cli):
    result = run_cli("model.gguf", "-p", "why?")
    assert result.out == "heard: why?\n"
    assert result.err == format_stats(make_report().to_json()) + "\n"


def test_json_is_one_object_on_stdout(run_cli):
    result = run_cli("model.gguf", "-p", "why?", "--json")
    assert result.code == 0
    assert json.loads(result.out) == make_report("heard: why?").to_json()
    assert result.out.count("\n") == 1
    assert result.err.startswith("prompt ")


def test_an_engine_error_is_one_line(run_cli):
    result = run_cli("model.gguf", "-p", "boom")
    assert result.code == 1
    assert result.err == "error: no free rows are left\n"


def test_an_answer_that_breaks_off_ends_its_line(run_cli):
    result = run_cli("model.gguf", "-p", "burst")
    assert (result.code, result.out) == (1, "half an \n")
    assert result.err == "error: no free rows are left\n"


def test_an_error_of_several_lines_is_printed_as_one(capsys):
    print_error("first\n  second")
    assert capsys.readouterr().err == "error: first second\n"


def test_the_session_is_closed_when_the_answer_is_done(run_cli, session):
    run_cli("model.gguf", "-p", "why?")
    assert session.is_closed


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_ctrl_c_keeps_the_partial_answer_and_ends_with_130(extra):
    process = start("-p", "slow", *extra)
    if extra:
        time.sleep(2)
    else:
        assert process.stdout.read(5) == b"word0"
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 1
    assert process.returncode == 130
    assert b"cancelled" in err
    assert b"Traceback" not in err
    if extra:
        reply = json.loads(out)
        assert reply["finish_reason"] == "cancelled"
        assert reply["response"].startswith("word0")
    else:
        assert out.endswith(b"\n")


def test_ctrl_c_in_prefill_ends_with_130():
    process = start("-p", "slow prefill")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_a_reader_that_leaves_is_no_error_message():
    """`restkv-chat ... | head -1` ended in a BrokenPipeError."""
    process = start("-p", "slow")
    process.stdout.read(5)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 1
    assert err == b""


def test_stdout_of_another_encoding_does_not_stop_an_answer():
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    process = start("-p", "naïve →", env=env)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out == b"heard: na\\xefve \\u2192\n"


def test_json_stays_json_in_another_encoding():
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    process = start("-p", "naïve →", "--json", env=env)
    out, _err = process.communicate(timeout=30)
    assert json.loads(out)["response"] == "heard: naïve →"


def test_control_characters_stay_in_a_pipe(run_cli):
    # Bytes are kept for programs; only a terminal is protected, see the pty tests.
    assert run_cli("model.gguf", "-p", "escape").out == "a\x1b]0;title\x07b\n"


@pytest.fixture
def evil():
    return "a\x1b]0;title\x07b\x9b2J\x7fc\td"


def test_nothing_that_is_printed_for_a_person_can_command_the_terminal(evil, capsys):
    from rich.table import Table

    table = Table(evil)
    table.add_row(evil)
    stdout_console().print(table)
    stdout_console().print(evil)
    print_note(evil, style="dim")
    print_error(evil)
    out, err = capsys.readouterr()
    assert out.count("a]0;titleb2Jc") == 3
    assert err.count("a]0;titleb2Jc") == 2
    assert (out + err).replace("\n", "").isprintable()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_report_cannot_command_the_terminal(evil, capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    print_text(evil)
    assert capsys.readouterr().out == ("a]0;titleb2Jc\td" if is_terminal else evil) + "\n"


def test_json_holds_no_control_characters_and_loses_none(evil, capsys):
    print_json({"response": evil})
    out = capsys.readouterr().out
    assert out.removesuffix("\n").isprintable()
    assert json.loads(out)["response"] == evil


def test_no_bar_off_a_terminal(run_cli):
    result = run_cli("model.gguf", "-p", "prefill")
    assert "reading" not in result.err
    assert result.err.count("\n") == 1


def test_bar_can_be_stopped_before_it_began():
    with PrefillBar() as bar:
        bar.stop()
        bar.stop()


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0.0 MiB"),
        (1536 * 1024, "1.5 MiB"),
        (686 * 2**20, "686 MiB"),
        (4000 * 2**20, "4,000 MiB"),
        (20 * 2**30, "20.0 GiB"),
    ],
)
def test_sizes(n_bytes, text):
    assert format_bytes(n_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65.4, "1:05"), (3661, "1:01:01")])
def test_durations(seconds, text):
    assert format_seconds(seconds) == text
