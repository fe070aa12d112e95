"""Reductions of keys and queries, and what is tracked over all queries, against NumPy."""

import numpy as np
import pytest

from restkv_local.observe import QueryMoments, observe_native, observe_numpy, track_native
from restkv_local.reference import column_statistics, window_attention
from restkv_local.types import ObservationRequest
from tests import builders
from tests.native.test_compaction import random_keep

pytestmark = pytest.mark.native

MODELS = {
    "mha": builders.llama(n_head=4, n_head_kv=4, head_dim=64),
    "gqa-3-norm": builders.llama(n_head=9, n_head_kv=3, head_dim=64, n_embd=64),
    "gqa-8-neox": builders.qwen2(n_head=8, n_head_kv=1, head_dim=64),
    "yarn": builders.llama(head_dim=64, yarn_factor=4.0),
    "freq-factors": builders.llama(head_dim=64, rope_freqs=True),
    "head-128": builders.llama(n_head=4, n_head_kv=2, head_dim=128, n_embd=64),
}


def unequal(open_native, tokens, model, **options):
    """A context whose heads hold different numbers of rows, then 40 more tokens."""
    native = open_native(model, n_slots=1024, n_ring=64, **options)
    native.decode(tokens(60))
    native.decode(tokens(50, seed=1))
    shape = len(native.layers), native.layers[0].n_head_kv
    keep = random_keep(native, np.random.default_rng(2).integers(20, 90, shape))
    native.compact(keep, None, native.position)
    n_rows = np.count_nonzero(keep, axis=-1) + 40
    native.decode(tokens(40, seed=3))
    positions = np.broadcast_to(np.arange(native.used, dtype=np.int32), (*shape, native.used))
    absent = np.arange(native.used) < (native.used - n_rows)[..., None]
    return native, np.where(absent, -1, positions).astype(np.int32)


@pytest.mark.parametrize("type_k", ["f16", "q8_0"])
@pytest.mark.parametrize("kind", ["difference", "expected"])
@pytest.mark.parametrize("name", MODELS)
def test_key_scores_equal_numpy(open_native, tokens, name, kind, type_k):
    native, positions = unequal(open_native, tokens, MODELS[name], type_k=type_k)
    moments = QueryMoments()
    moments.add(native, 40)
    request = ObservationRequest(key_score=kind)
    found = observe_native(native, request, 0, positions, 0, moments=moments)
    expected = observe_numpy(native, request, 1, positions, 0, lambda i: None, moments=moments)
    for ours, theirs in zip(found, expected, strict=True):
        scale = np.abs(theirs.key_score).max()
        np.testing.assert_allclose(ours.key_score / scale, theirs.key_score / scale, atol=2e-3)


def rope_matrix(position, head_dim, base=10000.0):
    """RoPE of consecutive pairs as a matrix."""
    matrix = np.eye(head_dim)
    for i, angle in enumerate(position * base ** (-np.arange(0, head_dim, 2) / head_dim)):
        turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = turn
    return matrix


def test_the_mean_rotation_is_the_models_rope(open_native, tokens):
    native = open_native(builders.llama(head_dim=64))
    expected = np.mean([rope_matrix(p, 64) for p in range(100, 170)], axis=0)
    np.testing.assert_allclose(native.mean_rotation(0, 100, 70), expected, atol=1e-4)


def test_moments_are_those_of_queries_before_rope(open_native, tokens):
    """In the first layer a query depends on its token alone, up to RoPE."""
    native = open_native(builders.llama(head_dim=64), n_ring=64)
    native.decode(tokens(50))
    q = native.read(0, "q", 50).astype(np.float64)
    plain = np.stack([q[:, p] @ rope_matrix(p, 64) for p in range(50)], axis=1)
    moments = QueryMoments()
    moments.add(native, 50)
    mean, second = moments.mean(0)
    np.testing.assert_allclose(mean, plain.mean(axis=1), atol=1e-3)
    expected = np.einsum("hwi,hwj->hij", plain, plain) / 50
    np.testing.assert_allclose(second, expected, atol=1e-2)


def test_a_layer_whose_graph_leaves_rope_out_is_not_turned_back(open_native, tokens):
    """llama.cpp's hyperparameters say that all layers of smollm3 have RoPE; every fourth has none."""
    native = open_native(builders.smollm3(head_dim=64), n_ring=64, unturned=[3])
    native.decode(tokens(50))
    moments = QueryMoments()
    moments.add(native, 50)
    (i,) = (i for i, layer in enumerate(native.layers) if layer.il == 3)
    np.testing.assert_array_equal(native.mean_rotation(i, 100, 70), np.eye(64))
    plain = native.read(i, "q", 50).astype(np.float64)
    np.testing.assert_allclose(moments.mean(i)[0], plain.mean(axis=1), atol=1e-3)
    turned = moments.mean(0)[0] - native.read(0, "q", 50).astype(np.float64).mean(axis=1)
    assert np.abs(turned).max() > 0.1


@pytest.mark.parametrize("track", ["sum", "last_use"])
@pytest.mark.parametrize("name", ["mha", "gqa-3-norm", "gqa-8-neox"])
def test_tracked_figures_equal_numpy_over_all_queries(open_native, tokens, name, track):
    native, positions = unequal(open_native, tokens, MODELS[name])
    n, n_seen = 40, 150
    start = np.full(positions.shape, 5.0, np.float32)
    tracked = start.copy()
    track_native(native, track, n, n_seen, tracked)
    rows = np.arange(native.used - n, native.used, dtype=np.int32)
    for i in range(len(native.layers)):
        scale, softcap, _ = native.attention_params(i)
        present = positions[i] >= 0
        attn = window_attention(
            native.read(i, "q", n), native.read(i, "k"), scale, softcap, q_row=rows, present=present
        )
        n_visible = rows + 1 - np.count_nonzero(~present, axis=-1)[:, None]
        groups = attn.shape[0] // present.shape[0]
        total, last = column_statistics(
            attn, np.arange(n_seen - n, n_seen), np.repeat(n_visible, groups, axis=0)
        )
        by_group = (present.shape[0], groups, -1)
        if track == "sum":
            expected = 5 + total.reshape(by_group).mean(axis=1)
            np.testing.assert_allclose(tracked[i], expected, rtol=2e-3)
        else:
            expected = np.maximum(last.reshape(by_group).max(axis=1), 5)
            # A share that is fair to the last digit may fall on either side.
            assert (tracked[i] == expected).mean() > 0.99
