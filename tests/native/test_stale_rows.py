"""What a sequence left in the rows must not reach the next one: masked rows are multiplied by 0, and 0 * inf is NaN."""

import numpy as np
import pytest
from gguf import GGUFReader

from tests import builders

pytestmark = pytest.mark.native

POISON = 20  # the one token whose values are infinite in f16
MODELS = {
    "llama": builders.llama(n_head_kv=1, head_dim=64, n_embd=64),
    "gemma2": builders.gemma2(n_head_kv=1, head_dim=64, n_embd=64),  # layer 0 has a window
}


@pytest.fixture
def open_poisoned(open_native, tmp_path):
    def open_(name):
        path = MODELS[name].write(tmp_path / f"{name}.gguf")
        tensors = {tensor.name: tensor.data for tensor in GGUFReader(path, "r+").tensors}
        tensors["token_embd.weight"][:, 0] = 0
        tensors["token_embd.weight"][POISON] = 0
        tensors["token_embd.weight"][POISON, 0] = 1
        tensors["blk.0.attn_v.weight"][:, 0] = 1e7
        return open_native(path, n_ubatch=128)

    return open_


@pytest.fixture
def poison(on_gpu):
    def poison_(native):
        for _ in range(2):
            native.decode([POISON] * 100)
        infinite = not np.isfinite(native.logits()).any()
        if on_gpu and not infinite:
            pytest.skip("this device holds what f16 cannot at its largest value")
        assert infinite

    return poison_


def read(native, text):
    """Read in tiles, as many tokens are, and fill no whole block of rows: the others are masked."""
    assert len(text) > 64
    assert len(text) % 32
    native.decode(text)
    return native.logits().copy()


@pytest.mark.parametrize("name", MODELS)
def test_a_cleared_cache_is_as_a_new_one_whatever_was_read_before(
    open_poisoned, poison, tokens, name
):
    text = [token for token in tokens(80) if token != POISON][:70]
    native = open_poisoned(name)
    expected = read(native, text)
    assert np.isfinite(expected).all()
    native.clear()
    poison(native)
    native.clear()
    np.testing.assert_array_equal(read(native, text), expected)


def test_a_state_brings_all_rows_back_to_what_they_were(open_poisoned, poison, tokens):
    text = [token for token in tokens(120) if token != POISON][:110]
    native = open_poisoned("llama")
    native.decode(text[:40])
    state = native.state()
    expected = read(native, text[40:])
    native.clear()
    poison(native)
    native.set_state(state)
    np.testing.assert_array_equal(read(native, text[40:]), expected)
