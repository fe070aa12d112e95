"""The native contractions against the NumPy oracle, on the same stored tensors."""

import numpy as np
import pytest

from restkv_local.errors import NativeError
from restkv_local.model.output_factors import fold_v_rotation
from restkv_local.observe import observe_native, observe_numpy
from restkv_local.types import ObservationRequest
from tests import builders

pytestmark = pytest.mark.native

MODELS = {
    "mha": builders.llama(n_head=4, n_head_kv=4, head_dim=64),
    "gqa-2": builders.llama(n_head=4, n_head_kv=2, head_dim=64),
    "gqa-3": builders.llama(n_head=9, n_head_kv=3, head_dim=64, n_embd=64),
    "gqa-4": builders.qwen2(n_head=8, n_head_kv=2, head_dim=64),
    "gqa-8": builders.mistral(n_head=8, n_head_kv=1, head_dim=64, n_embd=64),
    "gemma": builders.gemma(head_dim=64),
    "gemma2-softcap": builders.gemma2(head_dim=64),
}
REQUESTS = {
    "ema-aggregate": ObservationRequest(reductions=("ema",), distance="aggregate"),
    "mean-max-last": ObservationRequest(reductions=("mean", "max", "last")),
    "no-projection": ObservationRequest(reductions=("mean",), distance="aggregate", project=False),
    "past-only": ObservationRequest(reductions=("ema",), distance="aggregate", past_only=True),
    "two-and-aggregate": ObservationRequest(reductions=("ema", "max"), distance="aggregate"),
    "per-query": ObservationRequest(reductions=("ema",), distance="per_query"),
    "per-query-tau": ObservationRequest(reductions=("mean",), distance="per_query", tau=0.5),
    "per-query-max": ObservationRequest(reductions=("max",), distance="per_query"),
    "max-aggregate": ObservationRequest(reductions=("max",), distance="aggregate"),
    "square-entropy": ObservationRequest(reductions=("mean", "square", "entropy")),
    "value-norm": ObservationRequest(value_norm=True),
    "drift": ObservationRequest(reductions=("ema",), drift=True, top_k=40),
    # As many as the smallest head has rows where some are absent: those that a query cannot see yet count too.
    "drift-70": ObservationRequest(reductions=("ema",), drift=True, top_k=70),
}


def observe_both(native, request, n_obs, n_absent=0):
    rng = np.random.default_rng(1)
    factors = []
    for i, layer in enumerate(native.layers):
        own = rng.standard_normal((layer.n_head, layer.head_dim_v, layer.head_dim_v))
        own = own.astype(np.float32)
        if native.v_rotated:
            own = fold_v_rotation(own)
        if not request.project:
            own = np.broadcast_to(np.eye(layer.head_dim_v, dtype=np.float32), own.shape)
        native.set_factors(i, own)
        factors.append(own)
    gaps = rng.integers(1, 5, (len(native.layers), native.layers[0].n_head_kv, native.used))
    positions = np.cumsum(gaps, axis=-1).astype(np.int32)
    absent = np.broadcast_to(np.asarray(n_absent)[..., None], (*positions.shape[:2], 1))
    positions[np.arange(native.used) < absent] = -1
    return (
        observe_native(native, request, n_obs, positions, 0),
        observe_numpy(native, request, n_obs, positions, 0, factors.__getitem__),
    )


def assert_close(found, expected, tolerance):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance)


def assert_same_observations(native_side, numpy_side, tolerance, on_gpu):
    assert len(native_side) == len(numpy_side) > 0
    for found, expected in zip(native_side, numpy_side, strict=True):
        assert found.attention.keys() == expected.attention.keys()
        for name in expected.attention:
            assert_close(found.attention[name], expected.attention[name], tolerance)
        for name in ("distance", "indicator", "value_norm", "drift"):
            if getattr(expected, name) is None:
                assert getattr(found, name) is None
                continue
            # Rounding swaps keys of nearly equal weight at the edge of the ranking.
            slack = 10 if name == "drift" else 1
            ours, theirs = getattr(found, name), getattr(expected, name)
            if name != "drift":
                # Without a row anything finite will do: attention there is 0.
                groups = ours.shape[0] // expected.n_head_kv
                present = np.repeat(expected.positions >= 0, groups, axis=0)
                ours, theirs = np.where(present, ours, 0), np.where(present, theirs, 0)
            if on_gpu and name == "indicator":
                # GPUs multiply in f16: of the few rows with nearly all the attention few digits of the rest are left.
                far = np.abs(ours - theirs) > tolerance * np.abs(theirs).max()
                assert far.mean() <= 0.02
                ours = np.where(far & (np.abs(ours - theirs) < 0.7 * np.abs(theirs)), theirs, ours)
            assert_close(ours, theirs, slack * tolerance)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_native_equals_numpy_for_every_request_and_grouping(
    open_native, tokens, on_gpu, model, request_
):
    native = open_native(model)
    native.decode(tokens(64))
    native.decode(tokens(40, seed=1))
    # Keys are read back as stored; the product rounds queries to f16 as attention itself does.
    assert_same_observations(*observe_both(native, request_, 17), 2e-3, on_gpu)


@pytest.mark.parametrize("name", ["per-query", "per-query-tau", "per-query-max"])
def test_a_row_with_all_the_attention_ranks_by_what_is_lost_without_it(open_native, tokens, name):
    """In float32 its value and the output are equal: plain odds times distance would be 0."""
    sharp = builders.llama(head_dim=64, q_scale=60.0)
    native = open_native(sharp)
    native.decode(tokens(60))
    found, expected = observe_both(native, REQUESTS[name], 5)
    attention, _, _ = native.score(flags=0, weights=np.eye(5, dtype=np.float32))
    assert max(layer.max() for layer in attention) > 1 - 1e-6
    for ours, theirs in zip(found, expected, strict=True):
        assert np.isfinite(ours.indicator).all()
        # Rows near the edge of float32 may fall on either side of it: compare the ranking's top.
        best = theirs.indicator.argmax(axis=-1)
        top = np.take_along_axis(ours.indicator, best[:, None], axis=-1)[:, 0]
        assert (top >= 0.5 * ours.indicator.max(axis=-1)).all()


@pytest.mark.parametrize("type_v", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("type_k", ["f16", "q8_0", "q4_0"])
def test_native_equals_numpy_for_quantised_and_rotated_rows(
    open_native, tokens, on_gpu, type_k, type_v
):
    native = open_native(MODELS["gqa-3"], type_k=type_k, type_v=type_v)
    native.decode(tokens(64))
    assert native.v_rotated == (type_v != "f16")
    tolerance = 2e-3 if type_k == "f16" else 2e-2  # q8_1 queries meet quantised keys
    found = observe_both(native, REQUESTS["ema-aggregate"], 32)
    assert_same_observations(*found, tolerance, on_gpu)


@pytest.mark.model
@pytest.mark.parametrize("type_kv", ["f16", "q8_0"])
def test_native_equals_numpy_on_a_real_models_tensors(open_native, on_gpu, type_kv):
    from restkv_local.model.demo import resolve_model

    native = open_native(resolve_model("demo"), n_ubatch=256, type_k=type_kv, type_v=type_kv)
    text = "A cache keeps what the next question needs and lets the rest go. " * 12
    native.decode(native.tokenize(text, add_special=True)[:180])
    assert_same_observations(*observe_both(native, REQUESTS["ema-aggregate"], 32), 2e-2, on_gpu)


@pytest.mark.parametrize("n", [15, 16, 17, 63])
def test_a_querys_shares_sum_to_one_and_end_with_itself(open_native, tokens, n):
    native = open_native(MODELS["gqa-3"])
    native.decode(tokens(n))
    attention, _, _ = native.score(flags=0, weights=np.eye(7, dtype=np.float32))
    for layer in attention:
        np.testing.assert_allclose(layer.sum(axis=-1), 1, rtol=2e-6)
        later = np.arange(n) > np.arange(n - 7, n)[:, None]
        assert (layer[np.broadcast_to(later[:, None], layer.shape)] == 0).all()
        assert (layer[np.broadcast_to(~later[:, None], layer.shape)] > 0).all()


def test_window_holds_only_queries_whose_rows_are_still_there(open_native, tokens):
    text, more = tokens(40), tokens(3, seed=2)
    native = open_native(MODELS["gqa-2"], n_ring=16)
    native.decode(text)
    assert native.n_observed == 16
    native.decode(tokens(4, seed=1))
    native.remove_tail(4)
    # The removed tail had taken four places of the ring.
    assert native.n_observed == 12
    native.decode(more)
    assert native.n_observed == 15
    weights = np.eye(15, dtype=np.float32)
    attention, _, _ = native.score(flags=0, weights=weights)

    other = open_native(MODELS["gqa-2"], n_ring=16)
    other.decode(text)
    other.decode(more)
    expected, _, _ = other.score(flags=0, weights=weights)
    for layer, same in zip(attention, expected, strict=True):
        np.testing.assert_array_equal(layer, same)


def test_a_tail_longer_than_the_ring_leaves_no_query(open_native, tokens):
    native = open_native(MODELS["gqa-2"], n_ring=16)
    native.decode(tokens(40))
    native.decode(tokens(20, seed=1))
    native.remove_tail(20)
    assert native.n_observed == 0
    native.decode(tokens(3, seed=2))
    assert native.n_observed == 3


def test_a_window_wider_than_what_was_observed_is_refused(open_native, tokens):
    native = open_native(MODELS["gqa-2"])
    native.decode(tokens(5))
    with pytest.raises(NativeError, match=r"n_skip \+ n_window = 0 \+ 6 is not in \[1, 5\]"):
        native.score(flags=0, weights=np.ones((1, 6), np.float32))


def test_what_would_end_the_process_is_refused(open_native, tokens):
    native = open_native(MODELS["gqa-2"])
    assert native.key_direction().shape[-1] == 0
    with pytest.raises(NativeError, match="more than n_ubatch"):
        native.decode(tokens(5000))
    native.release()
    for call in (native.find_logits, lambda: native.position, lambda: native.remove_tail(1),
                 lambda: native.decode(tokens(3))):  # fmt: skip
        with pytest.raises(NativeError):
            call()
