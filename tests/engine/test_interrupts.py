"""Ctrl-C at the moments that leave a session between two states."""

import _thread
import time

import numpy as np
import pytest

from tests import builders
from tests.engine.test_engine import check_invariants, read

pytestmark = pytest.mark.native

MODEL = builders.llama(n_head=9, n_head_kv=3, head_dim=64, n_embd=64)


def interrupt_once(monkeypatch, bindings, name):
    """Press Ctrl-C while the native function runs; it still does all of its work."""
    call = getattr(bindings, name)
    pressed = []

    def late(*args):
        if not pressed:
            pressed.append(True)
            _thread.interrupt_main()
            time.sleep(0.05)
        return call(*args)

    monkeypatch.setattr(bindings, name, late)
    return pressed


@pytest.mark.parametrize("guide", [0, 12], ids=["window", "guide"])
@pytest.mark.parametrize("name", ["compact", "score"])
def test_an_eviction_happens_whole_or_not_at_all(open_llama, tokens, monkeypatch, name, guide):
    llama = open_llama(MODEL, n_recent=8)
    pressed = interrupt_once(monkeypatch, llama.native._restkv, name)
    engine = llama.engine
    engine.open(400, 16, 0)
    with pytest.raises(KeyboardInterrupt):
        engine.read(tokens(400), guide=tokens(guide, seed=9))
    assert pressed
    check_invariants(engine)
    assert engine.counters.events == (1 if name == "compact" else 0)
    seen = engine.counters.seen
    engine.read(tokens(400)[seen:], guide=tokens(guide, seed=9))
    check_invariants(engine)
    assert engine.counters.seen == 400
    if name == "score":
        assert np.isfinite(llama.native.logits()).all()


def test_a_token_that_was_decoded_too_late_to_stop_is_not_there(open_llama, tokens, monkeypatch):
    llama = open_llama(MODEL)
    engine = read(llama, tokens(40))
    decode = llama.native._llama.llama_decode

    def late(*args):
        status = decode(*args)
        _thread.interrupt_main()
        time.sleep(0.05)
        return status

    monkeypatch.setattr(llama.native._llama, "llama_decode", late)
    with pytest.raises(KeyboardInterrupt):
        engine.step(tokens(1)[0])
    monkeypatch.undo()
    check_invariants(engine)
    assert engine.counters.seen == 40
    engine.step(tokens(1)[0])
    check_invariants(engine)
