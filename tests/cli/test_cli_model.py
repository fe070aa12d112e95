"""The command line on the real model and the real library, from outside the process."""

import json
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.model, pytest.mark.native]

CHAT = "from restkv_local.cli.main import chat_main; chat_main()"
MAIN = "from restkv_local.cli.main import main; main()"

SENTENCES = (
    "The harbour was quiet in the morning and the boats lay still.",
    "Nobody on the pier remembered when the lighthouse had been painted.",
    "A gull walked along the wall and looked at the grey water.",
)
LONG_TEXT = " ".join(f"{i}. {SENTENCES[i % 3]}" for i in range(240))

KEYS = {
    "usage": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "timings": [
        "prompt_n", "prompt_ms", "prompt_per_second",
        "predicted_n", "predicted_ms", "predicted_per_second", "cache_n",
    ],
    "kv": [
        "policy", "allocation", "prefill", "positions", "budget", "capacity", "peak", "seen",
        "kept", "evicted", "events", "score_ms", "compact_ms", "guide_ms", "bytes", "bytes_full",
    ],
}  # fmt: skip


def run_chat(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-c", CHAT, "demo", *args], capture_output=True, timeout=300, **kwargs
    )


def test_a_long_piped_text_under_a_budget():
    done = run_chat(
        "-p", "Who walked along the wall?", "--budget", "512", "-n", "16", "--temp", "0", "--json",
        input=LONG_TEXT.encode(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    for name, keys in KEYS.items():
        assert sorted(reply[name]) == sorted(keys)
    assert reply["response"]
    assert reply["finish_reason"] in ("stop", "length")
    kv = reply["kv"]
    assert kv["seen"] > 4000
    assert kv["peak"] <= kv["capacity"] == 1280
    assert kv["evicted"] == kv["seen"] - kv["kept"] > 0
    assert kv["events"] > 0
    line = done.stderr.decode()
    assert line.count("\n") == 1
    assert f"KV {kv['kept']:,.0f}/{kv['seen']:,} kept" in line


def test_the_answer_alone_is_on_stdout(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("The lighthouse keeper is called Anna.", encoding="utf-8")
    args = ["-f", str(file), "-p", "Who keeps the lighthouse?", "--temp", "0", "-n", "24"]
    done = run_chat(*args, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    reply = run_chat(*args, "--json", stdin=subprocess.DEVNULL)
    assert done.stdout.decode() == json.loads(reply.stdout)["response"].rstrip("\n") + "\n"


def test_a_budget_below_its_minimum_names_all_numbers():
    done = run_chat("-p", "hello", "--budget", "40", stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    line = done.stderr.decode()
    assert line.startswith("error: budget must be at least")
    assert line.count("\n") == 1
    assert "n_pinned=" in line


@pytest.fixture
def terminal(monkeypatch):
    """Start the real `restkv-chat demo` on a pseudo-terminal; ends with its process."""
    pexpect = pytest.importorskip("pexpect")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")
    children = []

    def start(*args):
        child = pexpect.spawn(
            sys.executable,
            ["-c", CHAT, "demo", "--budget", "512", "--temp", "0", *args],
            encoding="utf-8",
            timeout=120,
            dimensions=(40, 200),
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.close(force=True)


def interrupt(child):
    """Press Ctrl-C; return the seconds until the turn had ended."""
    started = time.monotonic()
    child.sendintr()
    child.expect_exact("cancelled")
    return time.monotonic() - started


def ended(child):
    import pexpect

    child.expect(pexpect.EOF)
    child.close()
    assert "Traceback" not in child.before
    return child.exitstatus


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(LONG_TEXT * 10, encoding="utf-8")
    return str(path)


def test_ctrl_c_while_reading_ends_one_shot_within_a_second(terminal, book):
    child = terminal("-f", book, "-p", "Who walked along the wall?")
    child.expect_exact("reading")
    assert interrupt(child) < 1
    assert ended(child) == 130


def test_ctrl_c_keeps_the_conversation(terminal, book):
    child = terminal("-f", book, "-n", "2000")
    child.expect_exact(">>> ")
    child.send("Who walked along the wall?\r")
    child.expect_exact("reading")
    assert interrupt(child) < 1
    child.expect_exact(">>> ")
    child.send("/clear\r")
    child.expect_exact("forgotten")
    child.expect_exact(">>> ")
    child.send("Tell me a very long story about the sea.\r")
    child.expect_exact("\x1b[?2004l")  # the prompt is over, the answer begins
    child.expect(r"\w+ \w+ \w+ ")
    assert interrupt(child) < 1
    child.expect_exact(">>> ")
    child.send("/context\r")
    child.expect(r"KV \d+/\d+ kept, budget 512, capacity 1,280, pinned \d+")
    child.expect_exact("turns 1")
    child.expect_exact(">>> ")
    child.send("/exot\r")
    child.expect_exact("did you mean /exit?")
    child.expect_exact(">>> ")
    child.send("\x04")
    assert ended(child) == 0


def test_doctor_finds_the_library():
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "doctor"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "device    CPU" in done.stdout


@pytest.mark.parametrize("argument", ["-p", "-sys", "--guide"])
def test_a_byte_that_is_no_utf_8_is_one_line(argument):
    more = [] if argument == "-p" else ["-p", "why?"]
    done = run_chat(argument, b"caf\xe9?", *more)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: the text holds what is no character at place ")
    assert done.stderr.count(b"\n") == 1
