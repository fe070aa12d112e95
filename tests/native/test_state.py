"""A sequence as bytes: what was saved goes on as if nothing had happened."""

import numpy as np
import pytest

from restkv_local.errors import NativeError
from tests import builders
from tests.native.test_compaction import random_keep

pytestmark = pytest.mark.native

MODEL = builders.llama(n_head=9, n_head_kv=3, head_dim=64, n_embd=64)
SHARES = np.array([[20, 70, 41], [90, 12, 50]])


def filled(open_native, tokens, **options):
    native = open_native(MODEL, n_slots=1024, **options)
    native.decode(tokens(60))
    native.decode(tokens(50, seed=1))
    native.compact(random_keep(native, SHARES), None, native.position)
    native.decode(tokens(20, seed=2))
    return native


def go_on(native, tokens):
    logits = []
    for token in tokens(20, seed=3):
        native.decode([token])
        logits.append(native.logits().copy())
    return np.stack(logits)


@pytest.mark.parametrize("type_kv", ["f16", "q8_0", "q4_0"])
def test_a_restored_sequence_goes_on_to_the_bit(open_native, tokens, type_kv):
    options = {"type_k": type_kv, "type_v": type_kv}
    native = filled(open_native, tokens, **options)
    state = native.state()
    weights = np.full((1, 20), 0.05, np.float32)
    expected = native.score(flags=0, weights=weights)[0], go_on(native, tokens)
    for other in (native, open_native(MODEL, n_slots=1024, **options)):
        other.set_state(state)
        assert other.state() == state
        assert (other.used, other.position, other.n_observed) == (110, 129, 20)
        found = other.score(flags=0, weights=weights)[0], go_on(other, tokens)
        np.testing.assert_array_equal(np.stack(found[0]), np.stack(expected[0]))
        np.testing.assert_array_equal(found[1], expected[1])


def test_an_empty_sequence_is_a_state_too(open_native, tokens):
    native = filled(open_native, tokens)
    empty = open_native(MODEL, n_slots=1024).state()
    native.set_state(empty)
    assert (native.used, native.position, native.room) == (0, -1, 256)


def test_a_state_turned_by_other_rope_factors_is_refused(open_native, tokens):
    """The size of a context says which of a long-rope model's two sets counts."""
    model = builders.llama(head_dim=64, long_rope=True)  # made for 512 tokens
    native, longer = open_native(model), open_native(model, n_rows=768)
    native.decode(tokens(60))
    state = native.state()
    open_native(model, n_rows=512).set_state(state)
    with pytest.raises(NativeError, match="keys turned by other RoPE factors"):
        longer.set_state(state)
    longer.decode(tokens(60))
    open_native(model, n_rows=1024).set_state(longer.state())
    with pytest.raises(NativeError, match="keys turned by other RoPE factors"):
        native.set_state(longer.state())
    assert native.state() == state


def test_damaged_and_foreign_states_are_refused_and_change_nothing(open_native, tokens):
    native = filled(open_native, tokens)
    state = native.state()
    small = builders.llama(n_layer=3, n_head=4, n_head_kv=2, head_dim=128, n_embd=64)
    twisted = bytearray(state)
    twisted[24] ^= 0x40  # slots in use
    far = bytearray(state)
    far[28:32] = (2**31 - 1).to_bytes(4, "little")  # position of the newest row
    bare = bytearray(state)
    bare[36:40] = bytes(4)  # rows of the first head
    refused = {
        state[:10]: "its head alone",
        state[:-1]: "describes",
        state + b"0": "describes",
        b"\xff" + state[1:]: "has format",
        bytes(twisted): "contradicts itself",
        bytes(far): "contradicts itself",
        bytes(bare): "contradicts itself",
        filled(open_native, tokens, type_k="q8_0").state(): "another model or KV type",
        open_native(small, n_slots=1024).state(): "another model or KV type",
    }
    for data, message in refused.items():
        with pytest.raises(NativeError, match=message):
            native.set_state(data)
        with pytest.raises(NativeError, match=message):
            native.state_rows(data)
    assert native.state() == state


def test_a_state_says_how_many_rows_each_head_has(open_native, tokens):
    native = filled(open_native, tokens)
    n_rows = native.state_rows(native.state())
    assert n_rows.shape == (len(native.layers), native.layers[0].n_head_kv)
    assert n_rows.max() == native.used
    assert len(set(n_rows.ravel().tolist())) > 1


def test_unequal_segments_do_not_fit_a_pool_of_equal_ones(open_native, tokens):
    state = filled(open_native, tokens).state()
    with pytest.raises(NativeError, match="unequal ones if need be"):
        open_native(MODEL).set_state(state)


def test_sliding_window_layers_are_refused(open_native, tokens):
    native = open_native(builders.gemma2(head_dim=64))
    native.decode(tokens(20))
    with pytest.raises(NativeError, match="sliding window"):
        native.state()


def test_there_are_no_logits_before_anything_was_decoded(open_native):
    native = open_native(builders.llama(head_dim=64))
    assert native.find_logits() is None
    with pytest.raises(NativeError, match="nothing was decoded yet"):
        native.logits()


def test_logits_are_of_the_text_that_is_there(open_native, tokens):
    """llama.cpp keeps those of the text before."""
    native = open_native(MODEL)
    native.decode(tokens(20))
    state = native.state()
    native.decode(tokens(20, seed=1))
    assert native.find_logits() is not None
    native.set_state(state)
    assert native.find_logits() is None
    native.decode(tokens(1))
    native.clear()
    assert native.find_logits() is None
