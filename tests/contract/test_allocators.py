"""Every allocator in the registry through the same questions."""

import numpy as np
import pytest

from restkv_local.allocators.registry import ALLOCATORS, make_allocator
from restkv_local.errors import ConfigError


@pytest.fixture(params=ALLOCATORS, ids=str)
def allocator(request):
    return make_allocator(request.param)


def test_its_registry_name_is_its_own(allocator):
    assert ALLOCATORS[allocator.name] is type(allocator)
    assert allocator.summary
    assert "\n" not in allocator.summary


@pytest.mark.parametrize("budget", [1, 37, 255, 256, 257])
@pytest.mark.parametrize(("n_layer", "n_head_kv"), [(1, 1), (2, 8), (30, 3), (7, 5)])
def test_the_total_is_conserved(allocator, budget, n_layer, n_head_kv):
    rng = np.random.default_rng(budget)
    scores = [rng.random((n_head_kv, 600), np.float32) for _ in range(n_layer)]
    allocation = allocator.allocate(budget, n_layer, n_head_kv, scores)
    assert allocation.shape == (n_layer, n_head_kv)
    assert allocation.dtype == np.int32
    assert (allocation >= 0).all()
    assert allocation.sum() == budget * n_layer * n_head_kv


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"one of .*uniform.*'nope'"):
        make_allocator("nope")
