import numpy as np

from restkv_local.policies.restkv_plus import RestKVPlus
from restkv_local.types import Observation


def observe(attention_max, attention_mean, distance, n_window=1, positions=None):
    """One layer; arrays are (n_head, n_kv), two heads to the KV head."""
    top, mean, far = (np.array(a, np.float32) for a in (attention_max, attention_mean, distance))
    n_kv = top.shape[1]
    if positions is None:
        positions = np.arange(n_kv)[None]
    return Observation(
        layer=0, n_obs=n_window, n_window=n_window, positions=np.array(positions, np.int32),
        attention={"max": top, "mean": mean}, distance=far,
    )  # fmt: skip


def test_attention_of_whoever_wants_a_row_most_times_the_root_of_the_change():
    observation = observe(
        [[0.4, 0.1, 0.0, 0.5], [0.2, 0.3, 0.0, 0.6]],
        [[0.2, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.5]],
        [[8.0, 1.0, 9.0, 1.0], [2.0, 3.0, 5.0, 1.0]],
    )
    # heads' maximum 0.4, 0.3, 0, 0.6; d/(1-a), mean of heads, 6, 2, 7, 2
    for tau in (0.5, 1.0):
        np.testing.assert_allclose(
            RestKVPlus(kernel=1, tau=tau, floor=0.0).score(observation),
            [[0.4 * 6**tau, 0.3 * 2**tau, 0.0, 0.6 * 2**tau]],
            rtol=1e-6,
        )


def test_the_attention_is_pooled_and_the_change_is_not():
    observation = observe(
        [[0.0, 0.6, 0.0, 0.0, 0.9]] * 2, [[0.0] * 5] * 2, [[1.0, 1.0, 4.0, 1.0, 1.0]] * 2
    )
    found = RestKVPlus(kernel=3, floor=0.0).score(observation)
    np.testing.assert_allclose(found[0, 1:4], [0.2, 0.2 * 2, 0.0], rtol=1e-6)


def test_a_row_with_all_the_attention_is_as_far_as_the_furthest():
    found = RestKVPlus(kernel=1, tau=1.0, floor=0.0).score(
        observe([[1.0, 0.1, 0.2]] * 2, [[1.0, 0.0, 0.0]] * 2, [[0.0, 5.0, 2.0]] * 2)
    )
    np.testing.assert_allclose(found, [[1.0 * 5, 0.1 * 5, 0.2 * 2]], rtol=1e-6)


def test_rows_that_nobody_looks_at_are_told_apart_by_their_values():
    observation = observe(
        [[0.4, 0.0, 0.0, 0.0, 0.9]] * 2,
        [[0.0] * 5] * 2,
        [[1.0, 2.0, 4.0, 1.0, 1.0]] * 2,
    )
    found = RestKVPlus(kernel=1, tau=1.0, floor=0.5).score(observation)
    # the past's mean worth 0.4/4, mean change 8/4
    np.testing.assert_allclose(found, [[0.4, 0.05 * 1, 0.05 * 2, 0.05 / 2, 0.9]], rtol=1e-6)


def test_the_floor_looks_at_rows_that_are_there_only():
    found = RestKVPlus(kernel=1, floor=1.0).score(
        observe(
            [[0.0, 0.0, 0.6, 0.0, 0.9]] * 2,
            [[0.0] * 5] * 2,
            [[1.0] * 5] * 2,
            positions=[[-1, 4, 5, 8, 9]],
        )
    )
    np.testing.assert_allclose(found[0, 1:], [0.2, 0.6, 0.2, 0.9], rtol=1e-6)
    assert np.isfinite(found).all()


def test_a_question_tells_rows_apart_without_the_floor():
    assert RestKVPlus(kernel=3).guided() == RestKVPlus(kernel=3, floor=0.0)
