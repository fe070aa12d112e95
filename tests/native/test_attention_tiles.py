"""Attention in tiles of our own gives llama.cpp's values to the bit, and a probe's within rounding."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests import builders

pytestmark = pytest.mark.native

# Chunks that are no multiple of a tile, heads that hold different numbers of rows, a mask that hides rows in between.
SCRIPT = """
import sys
import numpy as np
from restkv_local.native import NativeContext
path, out, type_kv, n_threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
rng = np.random.default_rng(0)
native = NativeContext(path)
native.open(640, n_slots=1024, n_ring=32, n_ubatch=256, n_threads=n_threads, type_k=type_kv, type_v=type_kv)
rows = []
def read(n):
    native.decode(rng.integers(10, 250, n).tolist())
    rows.append(native.logits().copy())
for n in (256, 65, 101, 1, 1, 64):
    read(n)
shape = len(native.layers), native.layers[0].n_head_kv, native.used
keep = rng.random(shape) < 0.5
keep[:, 0] &= rng.random(shape[2]) < 0.3
keep[..., -8:] = True
native.compact(keep, None, native.position)
for n in (256, 70, 1):
    read(n)
np.save(out, np.stack(rows))
"""


def logits_of(model, out, type_kv, n_threads, **environment):
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(out), type_kv, str(n_threads)],
        env=os.environ | environment,
        check=True,
    )
    return np.load(out)


@pytest.mark.parametrize(("type_kv", "n_threads"), [("f16", 1), ("f16", 5), ("f32", 1)])
@pytest.mark.parametrize(
    "model",
    [
        builders.llama(n_head=6, n_head_kv=2, head_dim=64),
        builders.llama(n_head=4, n_head_kv=4, head_dim=100),
        builders.llama(n_head=9, n_head_kv=3, head_dim=24),
        builders.gemma2(head_dim=128),
    ],
    ids=["64", "100, no GQA", "24, nine heads", "128, soft cap"],
)
def test_logits_are_llama_cpps_to_the_bit(tmp_path, model, type_kv, n_threads):
    path = model.write(tmp_path / "m.gguf")
    ours = logits_of(path, tmp_path / "a.npy", type_kv, n_threads)
    theirs = logits_of(path, tmp_path / "b.npy", type_kv, n_threads, RESTKV_TILES="0")
    np.testing.assert_array_equal(ours, theirs)


# llama.cpp adds up in halves where rows are F16; with F32 ones both take floats.
@pytest.mark.parametrize(("type_kv", "rounding"), [("f32", 2e-5), ("f16", 1e-2)])
@pytest.mark.parametrize("n", [2, 20, 63])
def test_a_probe_is_read_within_rounding_and_leaves_the_next_tokens_as_they_were(
    open_native, tokens, n, type_kv, rounding
):
    model = builders.llama(n_head=6, n_head_kv=2, head_dim=64)
    native = open_native(model, n_ring=64, type_k=type_kv, type_v=type_kv)

    def read(*, probe):
        native.clear()
        native.decode(tokens(64))
        native.decode(tokens(n, seed=1), probe=probe)
        found = native.logits().copy(), native.read(1, "q", n)
        native.remove_tail(n)
        native.decode(tokens(n, seed=2))
        return *found, native.logits().copy()

    logits, queries, after = read(probe=False)
    fast_logits, fast_queries, fast_after = read(probe=True)
    np.testing.assert_allclose(fast_logits, logits, rtol=0, atol=rounding)
    np.testing.assert_allclose(fast_queries, queries, rtol=0, atol=rounding)
    np.testing.assert_array_equal(fast_after, after)
    # Else nothing here was computed by our tiles, and every other comparison is of llama.cpp with itself.
    assert (fast_logits != logits).any()
