"""Each cell in its own process: what it says, what memory it took, and what happens when it dies."""

import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest

from restkv_local.bench import process
from restkv_local.bench.process import run_cell
from tests import builders


def child_of(code):
    return sys.executable, "-c", code


@pytest.mark.native
def test_a_cell_returns_its_result_and_the_peak_of_its_own_memory(cell):
    """Ours, however large, is not counted."""
    ballast = np.ones(1 << 27, np.uint8)
    reply = run_cell(cell(depth=200))
    assert "error" not in reply
    peak = reply["result"]["peak_bytes"]
    assert reply["result"]["kv_bytes"] < peak < psutil.Process().memory_info().rss
    assert ballast.all()


@pytest.mark.native
def test_a_whole_cache_shows_in_the_memory_of_the_process(tmp_path, cell):
    model = builders.llama(vocab="bpe", n_head=16, n_head_kv=16, head_dim=64).write(
        tmp_path / "w.gguf"
    )
    wide = replace(cell(depth=2000), model=str(model))
    small = run_cell(wide)["result"]
    whole = run_cell(replace(wide, options=wide.options | {"policy": "full"}))["result"]
    rows = whole["kv_bytes"] - small["kv_bytes"]
    assert rows > 10 << 20
    assert whole["peak_bytes"] - small["peak_bytes"] > rows / 2


@pytest.mark.native
def test_what_is_refused_comes_back_as_one_line(cell):
    assert "n_guide must be at most n_ubatch" in run_cell(cell(n_guide=65))["error"]
    assert run_cell(replace(cell(), model="none.gguf"))["error"].startswith("no model at none.gguf")


def test_only_a_column_of_llama_cpps_attends_as_llama_cpp_does(cell, monkeypatch):
    code = "import os, json; print(json.dumps({'result': {'tiles': os.getenv('RESTKV_TILES')}}))"
    monkeypatch.setattr(process, "_COMMAND", child_of(code))
    monkeypatch.delenv("RESTKV_TILES", raising=False)
    assert run_cell(replace(cell(), upstream=True))["result"]["tiles"] == "0"
    assert run_cell(cell())["result"]["tiles"] is None


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "by signal 9 (out of memory?)"),
        ("import sys; sys.exit(3)", "with exit code 3"),
        ("raise ValueError('two\\nlines')", "with exit code 1: lines"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_process_that_dies_says_how(monkeypatch, cell, code, text):
    monkeypatch.setattr(process, "_COMMAND", child_of(code))
    assert run_cell(cell()) == {"error": f"the process ended {text}"}


def test_the_child_gets_the_cell_and_waits_to_be_looked_at(monkeypatch, cell):
    code = (
        "import json, sys; line = json.loads(sys.stdin.readline());"
        "print(json.dumps({'result': line}), flush=True); sys.stdin.read()"
    )
    monkeypatch.setattr(process, "_COMMAND", child_of(code))
    result = run_cell(cell(depth=7))["result"]
    assert (result["depth"], result["n_gen"], result["options"]["budget"]) == (7, 8, 64)
    assert result["peak_bytes"] > 1 << 20


@pytest.mark.skipif(sys.platform == "win32", reason="wait4")
def test_a_process_can_be_measured_at_its_end_too():
    with subprocess.Popen(child_of("data = bytes(range(256)) * (1 << 17)")) as child:
        assert process._peak_at_end(child) > 32 << 20
        assert child.returncode == 0


def test_ctrl_c_takes_the_child_along(monkeypatch, cell):
    monkeypatch.setattr(process, "_COMMAND", child_of("import time; time.sleep(600)"))
    monkeypatch.setattr(process, "_converse", interrupted)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell())
    assert time.monotonic() - start < 60
    assert not psutil.pid_exists(interrupted.pid)


def interrupted(child, job, complaints):
    interrupted.pid = child.pid
    assert threading.current_thread() is threading.main_thread()
    raise KeyboardInterrupt
