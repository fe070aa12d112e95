"""Texts that llama.cpp's tokenizers have trouble with."""

import subprocess
import sys
import threading

import pytest

from restkv_local.errors import InputError
from restkv_local.native.worker import Worker
from tests import builders
from tests.model.raw_gguf import string

pytestmark = pytest.mark.native


@pytest.mark.parametrize(
    ("pre", "character"), [("default", "="), ("tekken", " "), ("seed-coder", "a")]
)
def test_a_long_run_of_one_kind_does_not_end_the_process(tmp_path, pre, character):
    """std::regex recurses once per character: 8 MiB of stack held about 27,000 of them."""
    model = builders.qwen3(n_layer=1, metadata={"tokenizer.ggml.pre": pre})
    script = f"""
from pathlib import Path
from restkv_local.native import NativeContext
native = NativeContext(Path({str(model.write(tmp_path / "m.gguf"))!r}))
print(len(native.tokenize({character!r} * 100_000, add_special=False)))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "100000\n")


@pytest.mark.parametrize("run", [" ", "a", "=\n", "\x1c=", "漢"])
def test_a_run_that_no_stack_holds_is_refused(open_native, run):
    native = open_native(builders.qwen3(n_layer=1))
    half = 2**19 + 1
    with pytest.raises(InputError, match=f"{2 * half + 3} characters in a row") as caught:
        native.tokenize("a b" + "".join(c * half for c in (run * 2)[:2]) + "  c", add_special=True)
    assert "\n" not in str(caught.value)


def test_a_long_text_of_words_is_read(open_native):
    native = open_native(builders.qwen3(n_layer=1))
    assert len(native.tokenize("the code\n" * 120_000, add_special=False)) > 120_000


def test_a_text_may_have_more_tokens_than_bytes(open_native, tmp_path):
    """Without a token for the space sign each of its three bytes is one."""
    path = builders.llama().write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(string("▁"), string("no!"), 1))
    native = open_native(path)
    assert len(native.tokenize(" " * 20, add_special=False)) == 3 * 21  # one goes before any text


def test_a_call_on_the_worker_may_ask_for_tokens(open_native):
    native = open_native(builders.qwen3())
    tokens = native.tokenize("the code", add_special=True)
    assert native.finish(lambda: native.tokenize("the code", add_special=True)) == tokens


def test_a_system_without_large_stacks_gets_a_smaller_one(monkeypatch):
    real = threading.stack_size

    def stack_size(size=0):
        if size > 8 << 20:
            raise ValueError(f"size not valid: {size} bytes")
        return real(size)

    before = real()
    monkeypatch.setattr(threading, "stack_size", stack_size)
    worker = Worker()
    try:
        assert worker.stack_bytes == 8 << 20
        assert worker.run(lambda: 1, on_interrupt=lambda: None) == 1
    finally:
        worker.close()
    assert real() == before
