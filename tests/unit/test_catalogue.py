"""What the registries say about themselves."""

import pytest

from restkv_local.allocators.registry import ALLOCATORS
from restkv_local.catalogue import describe_registries, list_needs, list_servable
from restkv_local.policies.registry import POLICIES, make_policy


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("restkv", ["attention"]),
        ("criticalkv", ["attention"]),
        ("h2o", ["all queries"]),
        ("lru", ["all queries"]),
        ("expected-attention", ["all queries", "keys"]),
        ("keydiff", ["keys"]),
        ("streamingllm", ["positions"]),
        ("full", []),
    ],
)
def test_needs_follow_from_what_a_policy_asks_for(name, needs):
    assert list_needs(make_policy(name)) == needs


def test_cake_serves_those_that_observe_attention():
    served, refused = list_servable("cake")
    assert {"restkv", "snapkv", "tova"} <= set(served)
    assert {"h2o", "keydiff", "fifo", "expected-attention"} <= set(refused)
    assert "full" not in [*served, *refused]


@pytest.mark.parametrize("allocation", sorted(set(ALLOCATORS) - {"cake"}))
def test_the_others_serve_every_policy_that_evicts(allocation):
    evicting = [name for name in POLICIES if POLICIES[name].evicts]
    assert list_servable(allocation) == (evicting, [])


def test_every_entry_is_listed_in_full():
    registries = describe_registries()
    assert [entry["name"] for entry in registries["policies"]] == list(POLICIES)
    assert [entry["name"] for entry in registries["allocators"]] == list(ALLOCATORS)
    for entry in [*registries["policies"], *registries["allocators"]]:
        assert entry["summary"]
        assert entry["source"]
