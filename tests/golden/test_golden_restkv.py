"""Our scores against the released code's, on the same tensors."""

from pathlib import Path

import numpy as np
import pytest

from restkv_local.policies.restkv import RestKV
from restkv_local.reference import observe

GOLDEN = Path(__file__).with_name("restkv.npz")
N_OBS, BUDGET = 16, 48

# The release: o over the rows before the window, one step of shift where nothing drifts.
RELEASED = {"past_only": True, "shift_at_zero": True}
POLICIES = {
    "after": RestKV(kernel=21, **RELEASED),
    "after_drift": RestKV(kernel=5, scale=5.0, **RELEASED),
    "after_tau": RestKV(kernel=5, tau=2.0, **RELEASED),
    "before": RestKV(order="per_query", kernel=1, adaptive=False),
    "before_without_wo": RestKV(order="per_query", kernel=1, adaptive=False, use_wo=False),
}


@pytest.mark.parametrize("name", POLICIES)
def test_scores_equal_the_released_code(name):
    golden, policy = np.load(GOLDEN), POLICIES[name]
    q, k, v = golden["q"], golden["k"], golden["v"]
    n_head, n_kv, head_dim = k.shape
    factors = golden["w_o"].reshape(-1, n_head, head_dim).transpose(1, 2, 0)
    rows = np.arange(n_kv, dtype=np.int32)
    observation = observe(
        q,
        k,
        v,
        factors,
        policy.request(N_OBS, n_kv, BUDGET - N_OBS),
        np.broadcast_to(rows, (n_head, n_kv)),
        rows[-N_OBS:],
        1 / np.sqrt(head_dim),
    )
    found = policy.score(observation)[:, : n_kv - N_OBS]
    expected = golden[f"scores_{name}"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max())
    best = -(BUDGET - N_OBS)
    for ours, theirs in zip(found, expected, strict=True):
        assert set(np.argsort(ours)[best:]) == set(np.argsort(theirs)[best:])


def test_the_drift_case_moves_kernel_and_shift():
    """Otherwise the adaptive window would be compared where it does nothing."""
    golden = np.load(GOLDEN)
    assert not np.allclose(golden["scores_after_drift"][1], golden["scores_after"][1], rtol=0.2)
