"""KV heads that hold different numbers of rows: the same pool, shared out anew at each eviction."""

import numpy as np
import pytest

from restkv_local.errors import CacheFullError, NativeError
from restkv_local.types import EvictionPlan
from tests import builders
from tests.native.test_compaction import random_keep, slot_shift
from tests.native.test_contractions import MODELS, REQUESTS, assert_same_observations, observe_both
from tests.numpy_llama import NumpyLlama

pytestmark = pytest.mark.native

N_ROWS, N_SLOTS = 256, 1024


def keep_some(native, present, n_keep, seed):
    """Mask of n_keep present rows in each segment, all of them where there are fewer."""
    rng = np.random.default_rng(seed)
    keep = np.zeros(present.shape, bool)
    for head in np.ndindex(present.shape[:2]):
        slots = np.flatnonzero(present[head])
        keep[head][rng.choice(slots, min(n_keep[head], slots.size), replace=False)] = True
    return keep


def shares(shape, mean, seed, most):
    """Unequal shares with the given mean: one head large, one tiny, the rest random."""
    rng = np.random.default_rng(seed)
    weights = rng.random(shape) ** 3 + 0.02
    wanted = weights / weights.sum() * mean * weights.size
    return np.clip(wanted.astype(int), 1, most)


@pytest.mark.parametrize("type_kv", ["f16", "q8_0"])
@pytest.mark.parametrize("n_head_kv", [8, 3, 1])
def test_rows_survive_many_rounds_of_new_shares(open_native, tokens, n_head_kv, type_kv):
    """Segments grow and shrink past each other; every survivor keeps its exact value."""
    n_head = 9 if n_head_kv == 3 else 8
    model = builders.llama(n_layer=4, n_head=n_head, n_head_kv=n_head_kv, head_dim=64, n_embd=64)
    native = open_native(model, n_slots=N_SLOTS, type_k=type_kv, type_v=type_kv)
    shape = (4, n_head_kv)
    present = np.ones((*shape, 0), bool)
    for event in range(8):
        native.decode(tokens(60, seed=2 * event))
        native.decode(tokens(50, seed=2 * event + 1))
        present = np.concatenate([present, np.ones((*shape, 110), bool)], axis=-1)
        before = [[native.read(i, tensor) for i in range(4)] for tensor in "kv"]
        n_keep = shares(shape, 100, event, N_SLOTS - 200)
        keep = keep_some(native, present, n_keep, event)
        plan = EvictionPlan(keep, n_keep.astype(np.int32))
        source, target = plan.moves()
        native.compact(keep, None, native.position)
        used = int(plan.n_keep.max())
        assert native.used == used
        total = N_ROWS * keep[..., 0].size
        assert native.room == min((total - keep.sum()) // keep[..., 0].size, N_SLOTS - used)
        for tensor, old in zip("kv", before, strict=True):
            expected = np.zeros((*shape, used, 64), np.float32)
            expected.reshape(-1, 64)[target] = np.stack(old).reshape(-1, 64)[source]
            found = np.stack([native.read(i, tensor) for i in range(4)])
            np.testing.assert_array_equal(found, expected)
        present = np.zeros((*shape, used), bool)
        present.ravel()[target] = True


@pytest.mark.parametrize("compact", [False, True], ids=["original", "compact"])
@pytest.mark.parametrize("n_head_kv", [4, 2, 1])
def test_logits_equal_masked_attention_over_the_same_rows(
    open_native, tokens, on_gpu, n_head_kv, compact, tmp_path
):
    """The control: nothing evicted, but every row that would have been is masked."""
    model = builders.llama(n_head=4, n_head_kv=n_head_kv, head_dim=64, n_embd=64)
    # F32 rows: with F16 ones the CPU's kernel also adds up in F16, and that alone costs 2e-6.
    native = open_native(model, n_slots=N_SLOTS, type_k="f32", type_v="f32")
    native.decode(tokens(64))
    native.decode(tokens(64, seed=1))
    keep = random_keep(native, shares((2, n_head_kv), 40, 3, 100))
    keep[..., -8:] = True
    rows = [[native.read(i, tensor) for i in range(2)] for tensor in "kv"]
    oracle = NumpyLlama(model.write(tmp_path / "oracle.gguf"))
    positions = np.broadcast_to(np.arange(128), keep.shape)
    position = 127
    if compact:
        n_keep = np.count_nonzero(keep, axis=-1)
        positions = positions.copy()
        positions[keep] += slot_shift(keep)
        position = int(n_keep.max()) - 1
    # Keys are cached rotated: the oracle turns them to where compaction puts them.
    keys = [oracle.turn(k, positions[i] - np.arange(128)) for i, k in enumerate(rows[0])]
    native.compact(keep, slot_shift(keep) if compact else None, position)
    for step, token in enumerate(tokens(5, seed=4)):
        native.decode([token])
        expected = oracle.step(token, position + 1 + step, keys, rows[1], keep)
        error = np.sum((native.logits() - expected) ** 2) / np.sum(expected**2)
        assert error <= (1e-5 if on_gpu else 1e-6)


@pytest.mark.parametrize("model", ["gqa-3", "gemma2-softcap"])
@pytest.mark.parametrize("name", REQUESTS)
def test_contractions_equal_numpy_where_rows_are_absent(open_native, tokens, on_gpu, name, model):
    native = open_native(MODELS[model], n_slots=N_SLOTS)
    native.decode(tokens(64))
    native.decode(tokens(60, seed=1))
    shape = len(native.layers), native.layers[0].n_head_kv
    keep = random_keep(native, np.resize([50, 90, 70, 64, 110, 40], shape))
    native.compact(keep, None, native.position)
    native.decode(tokens(30, seed=2))
    n_rows = np.count_nonzero(keep, axis=-1) + 30
    absent = native.used - n_rows
    assert_same_observations(*observe_both(native, REQUESTS[name], 17, absent), 2e-3, on_gpu)


def test_clearing_makes_segments_equal_again(open_native, tokens):
    logits = []
    native = open_native(builders.llama(head_dim=64), n_slots=N_SLOTS)
    for _ in range(2):
        native.decode(tokens(60))
        native.decode(tokens(60, seed=1))
        logits.append(native.logits().copy())
        native.compact(random_keep(native, np.array([[10, 110], [90, 20]])), None, 119)
        native.clear()
        assert native.room == N_ROWS
    np.testing.assert_array_equal(*logits)


def test_a_full_segment_refuses_tokens_though_cells_are_free(open_native, tokens):
    native = open_native(builders.llama(head_dim=64), n_slots=N_SLOTS)
    for seed in range(4):
        native.decode(tokens(64, seed=seed))
    assert native.room == 0
    with pytest.raises(CacheFullError):
        native.decode(tokens(1))
    native.compact(random_keep(native, np.array([[256, 200], [250, 200]])), None, 255)
    native.decode(tokens(native.room))
    with pytest.raises(CacheFullError):
        native.decode(tokens(1))


def test_unequal_plans_need_a_pool_that_was_made_for_them(open_native, tokens):
    native = open_native(builders.llama(head_dim=64))
    native.decode(tokens(20))
    with pytest.raises(NativeError, match="arm the context with n_rows"):
        native.compact(random_keep(native, np.array([[5, 6], [5, 5]])), None, 19)


@pytest.mark.parametrize("n_rows", [512, 768])
def test_rope_factors_follow_the_rows_not_what_a_segment_may_grow_to(open_native, tokens, n_rows):
    """A long-rope model made for 512 tokens; with four times the slots all logits were those of the long factors."""
    model = builders.llama(head_dim=64, long_rope=True)
    logits = []
    for n_slots in (None, 4 * n_rows):
        native = open_native(model, n_rows=n_rows, n_slots=n_slots)
        native.decode(tokens(60))
        logits.append(native.logits().copy())
    np.testing.assert_array_equal(*logits)
    native.set_state(open_native(model, n_rows=n_rows).state())
