"""The oracle of the native contractions, held against sums written out and against the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restkv_local.reference import (
    column_statistics,
    expected_attention,
    key_difference,
    observe,
    output_change,
    output_distance,
    reduce_queries,
    set_error,
    value_norm,
    window_attention,
)
from restkv_local.types import ObservationRequest
from tests.observations import (
    make_layer,
    make_moments,
    make_observation,
    mark_absent,
    positions_with_gaps,
    rows_of_window,
)

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
        "max": values.max(axis=1),
        "last": values[:, -1],
        "square": (values * values).mean(axis=1),
        "entropy": (-values * np.log(values)).mean(axis=1),
    }.items():
        np.testing.assert_allclose(reduce_queries(values, request, name), expected, rtol=1e-6)


def test_no_attention_has_no_entropy():
    request = ObservationRequest(reductions=("entropy",))
    one_hot = np.zeros((1, 3, 4))
    one_hot[..., 2] = 1.0
    assert (reduce_queries(one_hot, request, "entropy") == 0).all()
    even = np.full((1, 3, 4), 0.25)
    assert reduce_queries(even, request, "entropy").sum() == pytest.approx(np.log(4))


def test_square_and_mean_give_the_variance_over_the_queries():
    q, k, v, factors = make_layer()
    request = ObservationRequest(reductions=("mean", "square"))
    attention = make_observation(request, tensors=(q, k, v, factors)).attention
    variance = attention["square"] - attention["mean"].astype(np.float64) ** 2
    np.testing.assert_allclose(variance, attend(q, k).var(axis=1), atol=1e-7)


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


EVERYTHING = [
    ObservationRequest(
        reductions=("ema", "mean", "max", "last", "square", "entropy"),
        distance="aggregate",
        drift=True,
        top_k=3,
        value_norm=True,
        key_score="difference",
    ),
    ObservationRequest(
        reductions=("mean",), distance="per_query", past_only=True, key_score="expected"
    ),
    ObservationRequest(value_norm=True, project=False, key_score="expected"),
]
ARRAYS = ("distance", "indicator", "drift", "value_norm", "key_score")


@pytest.mark.parametrize("request_", EVERYTHING, ids=["aggregate", "per_query", "no attention"])
@pytest.mark.parametrize("n_absent", [(3, 0), (5, 14)], ids=str)
def test_absent_places_are_as_if_the_rows_were_not_there(request_, n_absent):
    """Each KV head against a cache that holds nothing but that head's rows."""
    q, k, v, factors = make_layer()
    whole = make_observation(request_, tensors=(q, k, v, factors), n_absent=n_absent)
    for g, absent in enumerate(n_absent):
        heads, rows = slice(2 * g, 2 * g + 2), slice(absent, None)
        moments = tuple(make_moments(q)[i][heads] for i in (0, 1))
        alone = observe(
            q[heads],
            k[g : g + 1, rows],
            v[g : g + 1, rows],
            factors[heads],
            request_,
            whole.positions[g : g + 1, rows],
            rows_of_window(24 - absent, 8),
            6**-0.5,
            moments=(*moments, make_moments(q)[2]),
        )
        for name, array in alone.attention.items():
            np.testing.assert_allclose(whole.attention[name][heads, rows], array, rtol=1e-6)
            assert (whole.attention[name][heads, :absent] == 0).all()
        for name in ARRAYS:
            mine, other = getattr(whole, name), getattr(alone, name)
            assert (mine is None) == (other is None)
            if mine is None:
                continue
            per_head = slice(g, g + 1) if mine.shape[0] == 2 else heads
            found = mine[per_head] if name == "drift" else mine[per_head, rows]
            np.testing.assert_allclose(found, other, rtol=2e-6, atol=1e-30)
            assert np.isfinite(mine).all()


def test_a_query_that_sees_no_row_gives_nothing():
    q, k, _, _ = make_layer()
    present = mark_absent(positions_with_gaps(2, 24), (20, 0)) >= 0
    attn = window_attention(q, k, 1.0, q_row=rows_of_window(24, 8), present=present)
    assert (attn[:2, :4] == 0).all()
    np.testing.assert_allclose(attn[:2, 4:].sum(axis=-1), 1)
    np.testing.assert_allclose(attn[2:].sum(axis=-1), 1)


def test_the_strongest_of_fewer_rows_than_asked_for_are_all_rows():
    request = ObservationRequest(reductions=("mean",), drift=True, top_k=20)
    observation = make_observation(request, n_absent=10)
    means = observation.positions[:, 10:].mean(axis=1)
    np.testing.assert_allclose(observation.drift, np.repeat(means, 2)[:, None] * [1, 1], rtol=1e-6)


def test_layers_and_tracked_figures_are_passed_through():
    request = ObservationRequest(reductions=("mean",))
    observation = make_observation(request, layer=3, n_layer=7, track="sum")
    assert (observation.layer, observation.n_layer) == (3, 7)
    assert observation.tracked.shape == (2, 24)


@pytest.mark.parametrize("projected", [True, False])
def test_value_norms_are_lengths_after_the_projection_of_each_head(projected):
    _, _, v, factors = make_layer()
    found = value_norm(v, factors if projected else None, 4)
    for h in range(4):
        image = v[h // 2] @ factors[h] if projected else v[h // 2]
        np.testing.assert_allclose(found[h], np.sqrt((image**2).sum(axis=-1)), rtol=1e-5)


def test_projected_norms_need_factors():
    q, k, v, _ = make_layer()
    with pytest.raises(ValueError, match="needs factors"):
        make_observation(ObservationRequest(value_norm=True), tensors=(q, k, v, None))


def test_expected_attention_needs_moments():
    q, k, v, _ = make_layer()
    request = ObservationRequest(key_score="expected")
    rows = positions_with_gaps(2, 24)
    with pytest.raises(ValueError, match="needs the moments"):
        observe(q, k, v, None, request, rows, rows_of_window(24, 8), 1.0)


def test_the_cosine_is_to_the_mean_of_the_directions():
    """Lengths do not count: 0, 90 and 90 degrees; the long key pulls no more than a short one."""
    k = np.array([[[9, 0], [0, 1], [0, 2], [7, 7]]], np.float32)
    present = np.array([[1, 1, 1, 0]], bool)
    expected = [1 / np.sqrt(5), 2 / np.sqrt(5), 2 / np.sqrt(5), 0]
    np.testing.assert_allclose(key_difference(k, present)[0], expected, rtol=1e-12)


def test_keys_without_a_direction_have_cosine_zero():
    k = np.array([[[0, 0], [1, 0]], [[1, 0], [-1, 0]]], np.float32)
    assert key_difference(k, np.ones((2, 2), bool)).tolist() == [[0, 1], [0, 0]]


def test_expected_attention_is_the_mean_of_exponentials_of_normal_queries():
    """The closed form against samples: E exp(scale q.k) for q of the given moments."""
    rng = np.random.default_rng(1)
    mean, spread = rng.standard_normal((2, 3)), 0.4 * rng.standard_normal((2, 3, 3))
    covariance = spread @ spread.transpose(0, 2, 1)
    moment = covariance + mean[:, :, None] * mean[:, None, :]
    angle = 0.3
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    k = rng.standard_normal((1, 5, 3))
    found = expected_attention(mean, moment, rotation, k, 0.7, np.ones((1, 5), bool))
    for h in range(2):
        noise = rng.standard_normal((400_000, 3)) @ spread[h].T
        queries = (mean[h] + noise) @ rotation.T
        weights = np.exp(0.7 * queries @ k[0].T).mean(axis=0)
        np.testing.assert_allclose(found[h], weights / weights.sum(), rtol=0.02)


def test_queries_that_never_change_are_expected_again():
    """No spread: the softmax of one query, rotated."""
    q, k, _, _ = make_layer(n_obs=1, dtype=np.float64)
    moment = q.transpose(0, 2, 1) @ q
    found = expected_attention(q[:, 0], moment, np.eye(6), k, 0.4, np.ones((2, 24), bool))
    attn = window_attention(q, k, 0.4, q_row=np.array([23], np.int32))
    np.testing.assert_allclose(found, attn[:, 0], rtol=1e-9)


def test_columns_are_summed_and_used_where_they_get_their_fair_share():
    attn = np.array([[[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]])
    received, last_use = column_statistics(
        attn, np.array([10, 11, 12], np.int32), np.array([1, 2, 3], np.int32)
    )
    np.testing.assert_allclose(received, [[1.7, 0.8, 0.5]])
    assert last_use.tolist() == [[11, 11, 12]]
    assert last_use.dtype == np.int32


def test_a_row_that_nobody_used_has_no_last_use():
    attn = np.array([[[0.1, 0.9], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]])
    n_visible = np.array([[2, 2], [1, 2]], np.int32)  # heads may see other numbers of rows
    _, last_use = column_statistics(attn, np.array([5, 6], np.int32), n_visible)
    assert last_use.tolist() == [[-1, 6], [6, -1]]
