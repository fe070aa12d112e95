"""Norms of value images are kept between evictions: they have to move, and to end, with their rows."""

import numpy as np
import pytest

from restkv_local.native import _bindings
from tests import builders
from tests.native.test_compaction import slot_shift
from tests.native.test_unequal_segments import keep_some, shares

pytestmark = pytest.mark.native

MODEL = builders.llama(n_layer=4, n_head=9, n_head_kv=3, head_dim=64, n_embd=64)
SHAPE = (4, 3)
METRICS = {
    "aggregate": _bindings.AGGREGATE,
    "per-query": _bindings.PER_QUERY,
    "value-norm": _bindings.VALUE_NORM,
}


def set_factors(native, seed):
    rng = np.random.default_rng(seed)
    factors = []
    for i, layer in enumerate(native.layers):
        shape = (layer.n_head, layer.head_dim_v, layer.head_dim_v)
        factors.append(rng.standard_normal(shape).astype(np.float32))
        native.set_factors(i, factors[i])
    return factors


def metric(native, flag):
    n = min(native.n_observed, 5)
    return np.stack(native.score(flags=flag, weights=np.full((1, n), 1 / n, np.float32))[1])


@pytest.mark.parametrize("n_slots", [None, 1024], ids=["equal", "unequal"])
@pytest.mark.parametrize("seed", range(4))
def test_norms_that_moved_are_to_the_bit_those_of_new_factors(open_native, tokens, seed, n_slots):
    """A walk through all that moves rows, ends them or puts others in their place."""
    native = open_native(MODEL, n_slots=n_slots)
    set_factors(native, seed)
    rng = np.random.default_rng(seed)
    present = np.ones((*SHAPE, 0), bool)
    saved = None

    def append(n):
        nonlocal present
        native.decode(tokens(n, seed=int(rng.integers(1000))))
        present = np.concatenate([present, np.ones((*SHAPE, n), bool)], axis=-1)

    append(40)
    for step in range(40):
        kind = rng.choice(["append", "cut", "evict", "save", "restore", "factors", "clear"],
                          p=[0.36, 0.12, 0.28, 0.06, 0.06, 0.06, 0.06])  # fmt: skip
        if kind == "append" and native.room >= 60:
            append(int(rng.integers(1, 60)))
        elif kind == "cut" and np.count_nonzero(present, axis=-1).min() > 20:
            native.remove_tail(int(rng.integers(1, 20)))
            present = present[..., : native.used]
        elif kind == "evict" and native.used > 60:
            n_keep = shares(SHAPE, 50, step, 200) if n_slots else np.full(SHAPE, 50)
            keep = keep_some(native, present, n_keep, step)
            n_keep = np.count_nonzero(keep, axis=-1)
            native.compact(keep, slot_shift(keep), int(n_keep.max()) - 1)
            present = np.arange(native.used) >= native.used - n_keep[..., None]
            append(8)
        elif kind == "save":
            saved = native.state(), present
        elif kind == "restore" and saved:
            native.set_state(saved[0])
            present = saved[1]
        elif kind == "factors":
            set_factors(native, seed := seed + 100)
        elif kind == "clear":
            native.clear()
            present = np.ones((*SHAPE, 0), bool)
            append(50)
        if native.n_observed == 0 or rng.random() < 0.3:
            continue
        there = np.repeat(present, 3, axis=1)
        found = {name: metric(native, flag) for name, flag in METRICS.items()}
        set_factors(native, seed)  # nothing is known of any row now
        for name, flag in METRICS.items():
            anew = metric(native, flag)
            np.testing.assert_array_equal(found[name][there], anew[there])
            set_factors(native, seed)
        metric(native, _bindings.VALUE_NORM)


def test_new_factors_end_what_is_known_of_rows(open_native, tokens):
    native, other = open_native(MODEL), open_native(MODEL)
    for seed in (1, 2):
        set_factors(native, seed)
        if seed == 1:
            native.decode(tokens(40))
        metric(native, _bindings.VALUE_NORM)
    set_factors(other, 2)
    other.decode(tokens(40))
    np.testing.assert_array_equal(*(metric(n, _bindings.AGGREGATE) for n in (native, other)))


def test_a_row_near_the_output_keeps_its_digits(open_native, tokens, on_gpu):
    """Of the squares of two images that agree in four digits, float32 would leave none of their difference."""
    native = open_native(builders.llama(head_dim=64, q_scale=60.0))
    native.decode(tokens(60))
    factors = set_factors(native, 1)
    n_near = 0
    for weights in np.eye(20, dtype=np.float32)[:, None]:  # one query at a time
        attention, found, _ = native.score(flags=_bindings.AGGREGATE, weights=weights)
        for i, layer in enumerate(native.layers):
            values = np.repeat(native.read(i, "v"), layer.n_head // layer.n_head_kv, axis=0)
            images = np.einsum("hnd,hdo->hno", values.astype(np.float64), factors[i])
            outputs = np.einsum("hn,hno->ho", attention[i][0].astype(np.float64), images)
            expected = np.linalg.norm(images - outputs[:, None], axis=-1)
            size = np.linalg.norm(images, axis=-1)
            n_near += np.count_nonzero((expected < 1e-3 * size) & (expected > 1e-5 * size))
            # GPUs multiply in f16.
            error = 1e-3 if on_gpu else 1e-5
            np.testing.assert_allclose(found[i], expected, rtol=error, atol=error * size.max())
    assert n_near > 0
