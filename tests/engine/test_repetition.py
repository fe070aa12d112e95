"""The text read a second time, to see which rows it takes to say it."""

from functools import partial

import numpy as np
import pytest

from restkv_local import reference
from restkv_local.errors import ConfigError
from restkv_local.types import ObservationRequest
from tests import builders
from tests.engine.test_engine import check_invariants, read

pytestmark = pytest.mark.native

MODEL = builders.llama(n_head=9, n_head_kv=3, head_dim=64, n_embd=64)


def most_attention(engine, n):
    """NumPy's maximum over the newest ``n`` queries and the heads of a group: (n_layer, n_head_kv, n_kv)."""
    request = ObservationRequest(reductions=("max",))
    positions = engine.rows.positions
    rows = np.arange(engine.rows.used - n, engine.rows.used, dtype=np.int32)
    found = []
    for i in range(len(engine.native.layers)):
        scale, softcap, _ = engine.native.attention_params(i)
        tensors = (engine.native.read(i, name, m) for name, m in (("q", n), ("k", 0), ("v", 0)))
        observed = reference.observe(
            *tensors, None, request, positions[i], rows, scale, softcap, i, n_window=n
        )
        found.append(observed.attention["max"].reshape(len(positions[i]), -1, len(positions[i][0])))
    return np.stack(found).max(axis=2)


def test_a_row_keeps_the_most_attention_of_any_repeated_token(open_llama, tokens):
    engine = open_llama(MODEL, policy="kvzip", prefill="full", budget=60).engine
    text = tokens(100)
    engine.open(100, 16, 0)
    engine.read(text, evict=False)
    expected = np.zeros_like(engine.rows.positions, np.float32)
    repetition = engine._tracking.repetition.__copy__()
    while repetition.pending:
        probe, n, n_passed = repetition.probe(np.ones(len(repetition.pending), bool))
        assert n_passed == n
        assert probe[-n:] == text[repetition_start(repetition, text) :][:n]
        most = engine._probe(probe, partial(most_attention, engine, n))
        expected = np.maximum(expected, most[:, :, :100])
        repetition.advance(n)
    engine.repeat()
    np.testing.assert_allclose(engine.rows.figures("repeat"), expected, atol=2e-4)
    assert expected.max() > 0.01


def repetition_start(repetition, text):
    return len(text) - len(repetition.pending)


def test_repeating_leaves_nothing_behind(open_llama, tokens):
    """The answer is that of a session that never repeated, and nothing is repeated twice."""
    found = []
    for repeats in (False, True):
        engine = open_llama(MODEL, policy="kvzip", budget=200).engine
        engine.open(150, 16, 0)
        engine.read(tokens(150), evict=False)
        if repeats:
            engine.repeat()
            assert not engine._tracking.repetition.pending
            before = engine.rows.figures("repeat").copy()
            engine.repeat()
            np.testing.assert_array_equal(engine.rows.figures("repeat"), before)
        assert engine.rows.used == 150
        for token in tokens(5, seed=3):
            engine.step(token)
        found.append(engine.native.logits().copy())
    np.testing.assert_array_equal(*found)


def test_an_answer_begins_with_the_texts_last_token(open_llama, tokens):
    """Read whole and evicted at the end: the probe comes last, its logits must not."""
    full, kvzip = (
        read(open_llama(MODEL, policy=policy, prefill="full"), tokens(150))
        for policy in ("full", "kvzip")
    )
    assert kvzip.counters.events == 1
    np.testing.assert_array_equal(kvzip.native.logits(), full.native.logits())


def test_a_score_stays_with_its_row_through_evictions(open_llama, tokens):
    llama = open_llama(MODEL, policy="kvzip", allocation="global")
    engine = llama.engine
    seen = {}

    def check(event):
        figures, positions = engine.rows.figures("repeat"), engine.rows.positions
        for where in zip(*np.nonzero(positions >= 0), strict=True):
            key = (*where[:2], positions[where])
            assert figures[where] >= seen.get(key, 0)
            seen[key] = figures[where]

    engine._on_evict = check
    read(llama, tokens(600))
    check_invariants(engine)
    assert engine.counters.events >= 3
    assert engine.counters.guide_ms > 0


def test_ctrl_c_while_repeating_leaves_the_text(open_llama, tokens, monkeypatch):
    engine = open_llama(MODEL, policy="kvzip", budget=200).engine
    engine.open(150, 16, 0)
    engine.read(tokens(150), evict=False)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("restkv_local.tracking.track_native", stop)
        with pytest.raises(KeyboardInterrupt):
            engine.repeat()
    assert engine.rows.used == 150
    assert len(engine._tracking.repetition.pending) == 150
    engine.repeat()
    assert not engine._tracking.repetition.pending


def test_what_another_policy_has_evicted_is_not_repeated(open_llama, tokens, monkeypatch):
    """A conversation that goes from kvzip to another policy and back says again what is there, not all it read."""
    llama = open_llama(MODEL, policy="kvzip", n_ubatch=128)
    engine, text = llama.engine, tokens(1500)
    engine.open(1500, 16, 0)
    engine.read(text[:100])
    engine.use(policy="fifo")
    engine.read(text[100:])
    assert engine.counters.events >= 2
    held = sorted(set(engine.rows.positions[engine.rows.positions >= 0].tolist()))
    assert len(held) < 600
    repeated = []
    monkeypatch.setattr(
        engine, "_probe", lambda probe, look: repeated.extend(probe[-look.args[-1] :])
    )
    engine.use(policy="kvzip")
    engine.repeat()
    assert repeated == [text[place] for place in held]
    assert not engine._tracking.repetition.pending


def test_a_chunk_must_hold_the_request(open_llama):
    with pytest.raises(ConfigError, match="n_ubatch of at least"):
        open_llama(MODEL, policy="kvzip", n_ubatch=20)
