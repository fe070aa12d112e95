"""The oracle of the native contractions, held against sums written out and against the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restkv_local.reference import (
    observe,
    output_change,
    output_distance,
    reduce_queries,
    set_error,
    window_attention,
)
from restkv_local.types import ObservationRequest
from tests.observations import make_layer, make_observation, positions_with_gaps, rows_of_window

GQA = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (8, 1)])


@st.composite
def layers(draw):
    """One layer in float64, with everything a model may do to its logits."""
    n_head, n_head_kv = draw(GQA)
    n_kv = draw(st.integers(2, 20))
    n_obs = draw(st.integers(1, n_kv - 1))
    q, k, v, w_o = make_layer(
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_kv=n_kv,
        n_obs=n_obs,
        spread=draw(st.sampled_from([0.1, 1.0, 3.0])),
        seed=draw(st.integers(0, 2**31)),
        dtype=np.float64,
    )
    # d x d_model: wider than a head, as a real output projection is
    w_o = np.concatenate([w_o, np.roll(w_o, 1, axis=2) * 0.5], axis=2)
    softcap = draw(st.sampled_from([0.0, 5.0]))
    sinks = draw(st.sampled_from([None, np.linspace(-1, 1, n_head)]))
    return q, k, v, w_o, softcap, sinks


def attend(q, k, softcap=0.0, sinks=None, q_row=None):
    q_row = rows_of_window(k.shape[1], q.shape[1]) if q_row is None else q_row
    return window_attention(q, k, q.shape[2] ** -0.5, softcap, q_row=q_row, sinks=sinks)


def outputs(attn, v, w_o):
    values = np.repeat(v, attn.shape[0] // v.shape[0], axis=0)
    return attn @ values @ w_o


@settings(max_examples=200)
@given(layers())
def test_the_indicator_is_the_true_change_of_the_output(layer):
    """Remove one row for real, run attention again, and compare. No smoothing, full output."""
    q, k, v, w_o, softcap, sinks = layer
    attn = attend(q, k, softcap, sinks)
    indicator = output_change(attn, v, w_o)
    before = outputs(attn, v, w_o)
    q_row = rows_of_window(k.shape[1], q.shape[1])
    for row in range(k.shape[1]):
        # A query right at the removed row sees one row less, like every later one.
        without = attend(q, np.delete(k, row, axis=1), softcap, sinks, q_row=q_row - (q_row >= row))
        after = outputs(without, np.delete(v, row, axis=1), w_o)
        change = np.linalg.norm(before - after, axis=-1)
        # Where all attention was on this row the clamp of 1 - a speaks, not the identity.
        sharp = attn[..., row] > 1 - 1e-5
        np.testing.assert_allclose(
            indicator[..., row][~sharp], change[~sharp], rtol=1e-8, atol=1e-11
        )


@given(layers(), st.data())
def test_the_set_error_is_the_true_change_of_the_output(layer, data):
    q, k, v, w_o, softcap, sinks = layer
    n_kv = k.shape[1]
    evicted = np.array(data.draw(st.lists(st.booleans(), min_size=n_kv, max_size=n_kv)))
    evicted[0] = False
    attn = attend(q, k, softcap, sinks)
    q_row = rows_of_window(n_kv, q.shape[1])
    q_row = q_row - (np.flatnonzero(evicted) <= q_row[:, None]).sum(axis=1)
    without = attend(q, k[:, ~evicted], softcap, sinks, q_row=q_row)
    change = outputs(attn, v, w_o) - outputs(without, v[:, ~evicted], w_o)
    expected = np.linalg.norm(change, axis=-1)
    found = set_error(attn, v, w_o, evicted)
    mass = attn[..., evicted].sum(axis=-1)
    near = mass < 1 - 1e-5
    np.testing.assert_allclose(found[near], expected[near], rtol=1e-8, atol=1e-11)


@given(layers())
def test_a_set_of_one_is_the_indicator(layer):
    q, k, v, w_o, softcap, sinks = layer
    attn = attend(q, k, softcap, sinks)
    indicator = output_change(attn, v, w_o)
    for row in range(k.shape[1]):
        near = attn[..., row] < 1 - 1e-5
        found = set_error(attn, v, w_o, np.arange(k.shape[1]) == row)
        np.testing.assert_allclose(found[near], indicator[..., row][near], rtol=1e-8, atol=1e-11)


def test_removing_everything_has_no_finite_error():
    q, k, v, w_o = make_layer()
    attn = attend(q, k)
    assert np.isinf(set_error(attn, v, w_o, np.ones(24, bool))).all()
    assert (set_error(attn, v, w_o, np.zeros(24, bool)) == 0).all()


def test_heads_may_lose_different_rows():
    q, k, v, _ = make_layer()
    attn = attend(q, k)
    evicted = np.zeros((2, 24), bool)
    evicted[1, 3] = True
    error = set_error(attn, v, None, evicted)
    assert (error[:2] == 0).all()
    assert (error[2:] > 0).all()


def test_attention_is_the_softmax_written_out():
    q, k, _, _ = make_layer(n_kv=9, n_obs=3, dtype=np.float64)
    sinks = np.array([0.5, -1.0, 2.0, 0.0])
    attn = window_attention(q, k, 0.7, 4.0, q_row=np.array([2, 5, 8], np.int32), sinks=sinks)
    for h in range(4):
        for w, row in enumerate([2, 5, 8]):
            logits = [4 * np.tanh(q[h, w] @ k[h // 2, n] * 0.7 / 4) for n in range(row + 1)]
            total = np.exp(logits).sum() + np.exp(sinks[h])
            np.testing.assert_allclose(attn[h, w, : row + 1], np.exp(logits) / total, rtol=1e-12)
            assert (attn[h, w, row + 1 :] == 0).all()


def test_large_logits_do_not_overflow():
    q, k, _, _ = make_layer()
    attn = attend(q * 1e4, k * 1e4)
    assert np.isfinite(attn).all()
    np.testing.assert_allclose(attn.sum(axis=-1), 1)


@pytest.mark.parametrize("n_obs", [1, 2, 5, 32])
@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0])
def test_ema_is_the_recursion_seeded_with_the_oldest(n_obs, alpha):
    values = np.random.default_rng(0).random((2, n_obs, 7))
    expected = values[:, 0]
    for w in range(1, n_obs):
        expected = alpha * values[:, w] + (1 - alpha) * expected
    request = ObservationRequest(reductions=("ema",), alpha=alpha)
    np.testing.assert_allclose(reduce_queries(values, request, "ema"), expected, rtol=1e-6)


def test_the_other_reductions_are_what_they_say():
    values = np.random.default_rng(0).random((2, 5, 7))
    request = ObservationRequest(reductions=("mean",))
    for name, expected in {
        "mean": values.mean(axis=1),
        "sum": values.sum(axis=1),
        "max": values.max(axis=1),
        "last": values[:, -1],
    }.items():
        np.testing.assert_allclose(reduce_queries(values, request, name), expected, rtol=1e-6)


def test_ema_is_almost_the_last_eight_queries():
    weights = ObservationRequest(reductions=("ema",)).weights("ema", 32)
    assert weights.sum() == pytest.approx(1)
    assert weights[-8:].sum() == pytest.approx(0.942, abs=5e-4)


def test_aggregate_distance_is_taken_to_one_reduced_output():
    q, k, v, factors = make_layer()
    request = ObservationRequest(reductions=("ema", "max"), distance="aggregate")
    observation = make_observation(request, tensors=(q, k, v, factors))
    assert set(observation.attention) == {"ema", "max"}
    attention = observation.attention["ema"].astype(np.float64)
    for h in range(4):
        output = attention[h] @ v[h // 2]
        for n in range(24):
            expected = np.linalg.norm((v[h // 2, n] - output) @ factors[h])
            assert observation.distance[h, n] == pytest.approx(expected, rel=1e-5)


def test_the_past_only_output_leaves_the_window_out_and_is_not_renormalised():
    q, k, v, factors = make_layer()
    request = ObservationRequest(reductions=("mean",), distance="aggregate", past_only=True)
    observation = make_observation(request, tensors=(q, k, v, factors))
    assert observation.n_window == 8
    output = observation.attention["mean"][0, :16].astype(np.float64) @ v[0, :16]
    expected = np.linalg.norm((v[0] - output) @ factors[0], axis=-1)
    np.testing.assert_allclose(observation.distance[0], expected, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["ema", "max"])
def test_the_per_query_indicator_is_reduced_after_the_metric(reduction):
    q, k, v, factors = make_layer()
    request = ObservationRequest(reductions=(reduction,), distance="per_query", tau=0.5)
    observation = make_observation(request, tensors=(q, k, v, factors))
    attn = attend(q, k)
    metric = attn / (1 - attn) * np.sqrt(output_distance(attn, v, factors))
    expected = reduce_queries(metric, request, reduction)
    np.testing.assert_allclose(observation.indicator, expected, rtol=1e-5, atol=1e-30)


def test_without_projection_no_factors_are_needed():
    q, k, v, _ = make_layer()
    plain = ObservationRequest(reductions=("mean",), distance="aggregate", project=False)
    identity = ObservationRequest(reductions=("mean",), distance="aggregate")
    eye = np.tile(np.eye(6, dtype=np.float32), (4, 1, 1))
    np.testing.assert_allclose(
        make_observation(plain, tensors=(q, k, v, None)).distance,
        make_observation(identity, tensors=(q, k, v, eye)).distance,
        rtol=1e-6,
    )
    with pytest.raises(ValueError, match="needs factors"):
        make_observation(identity, tensors=(q, k, v, None))


@pytest.mark.parametrize("n_obs", [1, 2, 7, 8])
def test_drift_is_the_mean_position_of_the_strongest_rows_of_each_half(n_obs):
    q, k, v, _ = make_layer(n_obs=n_obs)
    positions = positions_with_gaps(2, 24, seed=3)
    request = ObservationRequest(reductions=("mean",), drift=True, top_k=5)
    q_row = rows_of_window(24, n_obs)
    observation = observe(q, k, v, None, request, positions, q_row, 6**-0.5)
    attn = attend(q, k).astype(np.float32)
    for h in range(4):
        means = [
            np.mean([positions[h // 2, n] for n in sorted(range(24), key=lambda n: -a[n])[:5]])
            for a in attn[h]
        ]
        front = means[: max(n_obs // 2, 1)]
        expected = [np.mean(front), np.mean(means[n_obs // 2 :])]
        np.testing.assert_allclose(observation.drift[h], expected, rtol=1e-6)
