"""A model that nobody refers to any more is freed, close() or not; a process ends without it."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress

import pytest

from restkv_local import ChatSession, Llama
from restkv_local.errors import NativeError
from restkv_local.native import _library
from tests import builders

pytestmark = pytest.mark.native

OPTIONS = {"budget": 64, "n_recent": 8, "n_obs": 8, "n_guide": 16, "n_ubatch": 64, "kernel": 5,
           "temp": 0.0, "n_predict": 8, "seed": 1, "n_threads": 1}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    model = builders.llama(n_head=9, n_head_kv=3, head_dim=64)
    return model.write(tmp_path_factory.mktemp("freeing") / "m.gguf")


def n_threads():
    return sum(thread.name == "restkv" for thread in threading.enumerate())


def ended(n, wait=10.0):
    """Wait until only ``n`` threads of models are left, for they end by themselves."""
    until = time.monotonic() + wait
    while n_threads() > n and time.monotonic() < until:
        time.sleep(0.01)
    return n_threads() == n


@pytest.fixture
def freed(monkeypatch):
    """Count what llama.cpp frees, by name."""
    llama, calls = _library.load(), []
    for name in ("llama_free", "llama_model_free"):
        native = getattr(llama, name)
        monkeypatch.setattr(
            llama,
            name,
            lambda pointer, name=name, native=native: (calls.append(name), native(pointer))[1],
        )
    return calls


def leave_a_stream_open(llama):
    next(llama("the ferry", max_tokens=9, stream=True))


def leave_an_answer_open(llama):
    next(ChatSession(llama).send("what?"))


def fail(llama):
    native = {"n_ring": 1, "n_ubatch": 64, "n_threads": 1, "type_k": "f16", "type_v": "f16"}
    with suppress(NativeError):
        llama.native.open(2**30, n_slots=2**31 - 1, **native)


@pytest.mark.parametrize(
    "use",
    [
        lambda llama: None,
        lambda llama: llama("the ferry", max_tokens=2),
        lambda llama: llama.create_chat_completion([{"role": "user", "content": "hi"}]),
        lambda llama: list(llama.ask("the ferry left", "what?")),
        leave_a_stream_open,
        leave_an_answer_open,
        fail,
        lambda llama: llama.close(),
    ],
    ids=["new", "completion", "chat", "ask", "stream", "answer", "error", "closed"],
)
def test_a_dropped_model_is_freed_at_once_and_its_thread_ends(path, freed, use):
    before = n_threads()
    gc.collect()
    gc.disable()
    try:
        llama = Llama(path, **OPTIONS)
        use(llama)
        gone = weakref.ref(llama.native)
        del llama
        assert gone() is None
        assert freed[-1] == "llama_model_free"
        assert freed.count("llama_model_free") == 1
        assert ended(before)
    finally:
        gc.enable()


@pytest.mark.parametrize("begin", [
    lambda llama: llama("the ferry", max_tokens=9, stream=True),
    lambda llama: ChatSession(llama).send("what?"),
], ids=["stream", "answer"])  # fmt: skip
def test_a_collected_model_leaves_its_open_stream_nothing_to_call(path, freed, begin):
    """The collector frees the model first, then closes the stream."""
    before = n_threads()
    llama = Llama(path, **OPTIONS)
    llama.stream = begin(llama)
    next(llama.stream)
    del llama
    gc.collect()
    assert freed == ["llama_free", "llama_model_free"]
    assert ended(before)


GROWTH = """
import gc, sys, threading
import psutil
from restkv_local import Llama
def rss_of(n):
    for _ in range(n):
        Llama(sys.argv[1], **{options})("the ferry", max_tokens=2)
    gc.collect()
    return psutil.Process().memory_info().rss
print(-rss_of(10) + rss_of(20), threading.active_count())
"""


def test_memory_and_threads_do_not_grow_with_dropped_models(path):
    options = OPTIONS | {"budget": 4096}  # 6 MiB of K and V
    run = subprocess.run(
        [sys.executable, "-c", GROWTH.format(options=options), str(path)],
        # glibc would keep buffers of this size for the thread that had them, and threads come and go.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        capture_output=True,
        text=True,
        check=True,
    )
    n_bytes, n_left = map(int, run.stdout.split())
    assert n_bytes < 30 << 20
    assert n_left <= 2  # the last one may not have ended yet


SCRIPT = """
import sys, threading, time
from restkv_local import ChatSession, Llama
llama = Llama(sys.argv[1], **{options})
{use}
"""


@pytest.mark.parametrize(
    "use",
    [
        "",
        "llama('the ferry', max_tokens=2)",
        "llama('the ferry', max_tokens=2); del llama",
        "llama.me = llama; del llama",
        "stream = llama('the ferry', max_tokens=9, stream=True); next(stream)",
        "answer = ChatSession(llama).send('what?'); next(answer)",
        "llama.answer = ChatSession(llama).send('what?'); next(llama.answer); del llama",
        "llama.answer = ChatSession(llama).send('what?'); next(llama.answer); llama.close()",
        "def read():\n    while True: llama('the ferry ' * 40, max_tokens=30)\n"
        "threading.Thread(target=read, daemon=True).start(); time.sleep(0.3)",
    ],
    ids=["kept", "used", "dropped", "cycle", "stream", "answer", "cycle-answer", "closed-answer", "busy"],
)  # fmt: skip
def test_a_process_ends_without_a_word(path, use):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(options=OPTIONS, use=use), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


FORK = """
import os, sys
from restkv_local import Llama
from restkv_local.errors import InputError
llama = Llama(sys.argv[1], **{options})
llama("the ferry", max_tokens=2)
if pid := os.fork():
    assert os.waitpid(pid, 0)[1] == 0
    assert llama("the ferry", max_tokens=2)
else:
    try:
        llama("the ferry", max_tokens=2)
    except InputError as error:
        print(error)
    llama.close()
    llama = Llama(sys.argv[1], **{options})
    assert llama("the ferry", max_tokens=2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_fork_is_told_to_open_a_model_of_its_own(path):
    """Its thread is not there; waiting for it said that the model was closed."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK.format(options=OPTIONS), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "was forked after the model was opened" in run.stdout
    assert "open a Llama in each process" in run.stdout
    assert run.stdout.count("\n") == 1
