"""Every allocator in the registry through the same questions."""

import dataclasses

import numpy as np
import pytest

from restkv_local.allocators.devices import fit_devices
from restkv_local.allocators.registry import ALLOCATORS, make_allocator
from restkv_local.errors import ConfigError, PlanError
from restkv_local.planning import plan_eviction, protect_rows
from restkv_local.policies.registry import POLICIES, make_policy
from tests.demands import make_demand, present_rows

# (n_layer, n_head_kv, n_gqa)
HEADS = [(1, 1, 1), (3, 4, 1), (30, 3, 3), (4, 2, 8)]
heads = pytest.mark.parametrize(("n_layer", "n_head_kv", "n_gqa"), HEADS)

POSITIONAL = ("fifo", "random", "full")


@pytest.fixture(params=ALLOCATORS, ids=str)
def allocator(request):
    return make_allocator(request.param)


def check(allocator, demand):
    """What holds for every allocation; returns it."""
    allocation = allocator.allocate(demand)
    assert allocation.shape == demand.n_rows.shape
    assert allocation.dtype == np.int32
    assert allocation.sum() == demand.total
    assert (allocation >= demand.least).all()
    assert (allocation <= demand.most).all()
    return allocation


def ragged_rows(n_layer, n_head_kv, n_kv, low):
    """A number of rows for each head, from ``low`` to ``n_kv``, both there."""
    rows = np.random.default_rng(5).integers(low, n_kv + 1, (n_layer, n_head_kv))
    rows.flat[0], rows.flat[-1] = low, n_kv
    return rows


def test_its_registry_name_is_its_own(allocator):
    assert ALLOCATORS[allocator.name] is type(allocator)


def test_it_says_what_it_is_in_one_line(allocator):
    for text in (allocator.summary, allocator.source):
        assert text
        assert "\n" not in text


def test_it_is_frozen_data(allocator):
    assert dataclasses.is_dataclass(allocator)
    assert isinstance(hash(allocator), int)
    with pytest.raises(dataclasses.FrozenInstanceError):
        allocator.floor = 0.5


@pytest.mark.parametrize("budget", [1, 37, 255, 256, 257])
@heads
def test_the_total_is_conserved(allocator, budget, n_layer, n_head_kv, n_gqa):
    recent = protect_rows(600, n_sink=0, n_recent=1)
    demand = make_demand(
        budget=budget,
        n_layer=n_layer,
        n_head_kv=n_head_kv,
        n_gqa=n_gqa,
        n_kv=600,
        protected=recent,
        n_window=8,
    )
    check(allocator, demand)
    assert demand.total == budget * n_layer * n_head_kv


@pytest.mark.parametrize("budget", [37, 256])
@heads
def test_each_device_gets_its_own_rows(allocator, budget, n_layer, n_head_kv, n_gqa):
    """As a partly offloaded model has it: the last layers on the GPU."""
    recent = protect_rows(600, n_sink=4, n_recent=32)
    shape = {"n_layer": n_layer, "n_head_kv": n_head_kv, "n_gqa": n_gqa}
    demand = make_demand(budget=budget, n_kv=600, protected=recent, n_window=8, **shape)
    devices = np.arange(n_layer) >= n_layer // 3
    allocation = check(allocator, demand)
    fitted = fit_devices(allocation, demand, devices.tolist())
    assert (fitted >= demand.least).all()
    assert (fitted <= demand.most).all()
    for device in {*devices}:
        mine = devices == device
        assert fitted[mine].sum() == budget * mine.sum() * n_head_kv
        in_order = np.argsort(allocation[mine], axis=None, kind="stable")
        assert (np.diff(fitted[mine].ravel()[in_order]) >= -1).all()  # a row is rounding


def test_one_device_leaves_an_allocation_as_it_is(allocator):
    demand = make_demand()
    allocation = check(allocator, demand)
    assert fit_devices(allocation, demand, [0] * len(allocation)) is allocation


def test_a_device_with_few_rows_keeps_them_all():
    """What it leaves is no other's: nobody else can hold it."""
    demand = make_demand(n_layer=2, budget=8, n_rows=np.array([[3, 5], [24, 24]]))
    fitted = fit_devices(make_allocator("uniform").allocate(demand), demand, [0, 1])
    assert fitted.tolist() == [[3, 5], [8, 8]]


@pytest.mark.parametrize("budget", [38, 255, 256, 257])
@heads
def test_heads_of_unequal_length_meet_the_total(allocator, budget, n_layer, n_head_kv, n_gqa):
    """After an unequal allocation, heads hold other numbers of rows and protect the same ones."""
    rows = ragged_rows(n_layer, n_head_kv, 400, low=40)
    present = present_rows(rows, 400)
    protected = protect_rows(400, n_sink=4, n_recent=32, n_absent=400 - rows)
    demand = make_demand(
        budget=budget,
        n_layer=n_layer,
        n_head_kv=n_head_kv,
        n_gqa=n_gqa,
        n_kv=400,
        n_rows=rows,
        protected=protected,
        n_most=budget + 100,
        n_window=8,
    )
    allocation = check(allocator, demand)
    plan = plan_eviction(demand.scores, allocation, protected, present)
    np.testing.assert_array_equal(plan.n_keep, allocation)


@heads
def test_absent_rows_have_no_say(allocator, n_layer, n_head_kv, n_gqa):
    rows = ragged_rows(n_layer, n_head_kv, 60, low=8)
    demand = make_demand(n_layer=n_layer, n_head_kv=n_head_kv, n_gqa=n_gqa, n_kv=60, n_rows=rows)
    absent = ~present_rows(rows, 60)
    loud = np.where(absent, np.float32(1e30), demand.scores)
    quiet = np.where(absent, np.float32(-1e30), demand.scores)
    np.testing.assert_array_equal(
        allocator.allocate(dataclasses.replace(demand, scores=loud)),
        allocator.allocate(dataclasses.replace(demand, scores=quiet)),
    )


@heads
def test_no_head_exceeds_what_it_may_hold(allocator, n_layer, n_head_kv, n_gqa):
    demand = make_demand(
        budget=20, n_layer=n_layer, n_head_kv=n_head_kv, n_gqa=n_gqa, n_kv=60, n_most=21
    )
    assert check(allocator, demand).max() <= 21


def test_a_cap_below_the_budget_is_the_budget(allocator):
    demand = make_demand(budget=20, n_kv=60, n_most=9)
    assert (check(allocator, demand) == 9).all()


@pytest.mark.parametrize("budget", [24, 25, 255])
def test_where_everything_fits_everything_stays(allocator, budget):
    demand = make_demand(budget=budget, n_kv=24)
    assert (check(allocator, demand) == 24).all()
    ragged = make_demand(budget=budget, n_kv=24, n_rows=ragged_rows(3, 2, 24, low=3))
    np.testing.assert_array_equal(check(allocator, ragged), ragged.n_rows)


@heads
def test_scores_that_are_all_equal_favour_no_head(allocator, n_layer, n_head_kv, n_gqa):
    demand = make_demand(
        budget=10, n_layer=n_layer, n_head_kv=n_head_kv, n_gqa=n_gqa, n_kv=60, scores=1.0
    )
    by_head = np.ptp(check(allocator, demand), axis=1)
    assert (by_head <= 1).all()


def test_a_head_that_protects_more_than_the_budget_takes_it_from_the_others(allocator):
    protected = np.zeros((3, 2, 24), bool)
    protected[1, 0, :14] = True
    demand = make_demand(budget=8, protected=protected)
    assert check(allocator, demand)[1, 0] >= 14


def test_where_only_protected_rows_fit_they_are_the_allocation(allocator):
    protected = np.zeros((3, 2, 24), bool)
    protected[:, 0, :11], protected[:, 1, :5] = True, True
    demand = make_demand(budget=8, protected=protected)
    np.testing.assert_array_equal(check(allocator, demand), [[11, 5]] * 3)


def test_more_protected_rows_than_the_total_are_refused_with_all_numbers(allocator):
    demand = make_demand(budget=8, protected=np.arange(24) < 9)
    with pytest.raises(PlanError, match=r"54 rows are protected .* 8 rows .* 6 KV heads .* 48"):
        allocator.allocate(demand)


def test_a_head_that_cannot_hold_its_protected_rows_is_refused_by_name(allocator):
    protected = np.zeros((3, 2, 24), bool)
    protected[2, 1, :7] = True
    demand = make_demand(budget=8, protected=protected, n_most=6)
    with pytest.raises(PlanError, match=r"7 rows of layer 2, KV head 1 .* only 6"):
        allocator.allocate(demand)


@pytest.mark.parametrize("policy", POSITIONAL)
def test_it_splits_what_positional_policies_score(allocator, policy):
    if allocator.reductions:
        pytest.skip("asks for attention: see below")
    policy = make_policy(policy)
    demand = make_demand(budget=9, n_layer=4, n_kv=30, observes=False)
    scores = np.stack([policy.score(layer) for layer in demand.observations])
    check(allocator, dataclasses.replace(demand, scores=scores))


def test_attention_that_nobody_observed_is_missed_in_one_line(allocator):
    if not allocator.reductions:
        pytest.skip("asks for no attention")
    with pytest.raises(ConfigError, match="observes none") as caught:
        allocator.allocate(make_demand(observes=False))
    named = [name for name in POLICIES if name in str(caught.value)]
    assert named
    for name in named:
        request = make_policy(name).request(8, 100, 10)
        assert request is not None
        assert request.reductions


def test_scores_at_the_ends_of_float32_are_no_reason_to_fail(allocator):
    end = np.finfo(np.float32).max
    demand = make_demand()
    for scores in (np.full(24, end), np.full(24, -end), np.linspace(-1, 1, 24) * end):
        check(allocator, dataclasses.replace(demand, scores=np.tile(np.float32(scores), (3, 2, 1))))


def test_allocating_twice_gives_the_same_and_changes_no_input(allocator):
    demand, untouched = make_demand(seed=4), make_demand(seed=4)
    np.testing.assert_array_equal(allocator.allocate(demand), allocator.allocate(demand))
    for name in ("n_rows", "candidates", "scores"):
        np.testing.assert_array_equal(getattr(demand, name), getattr(untouched, name))
    for layer, before in zip(demand.observations, untouched.observations, strict=True):
        for name, array in layer.attention.items():
            np.testing.assert_array_equal(array, before.attention[name])


def test_equal_means_the_same_everywhere(allocator):
    """For the rows of a text that no unequal allocation has cut."""
    allocation = check(allocator, make_demand(budget=9, n_kv=60, seed=2))
    if allocator.equal:
        assert (allocation == 9).all()
    else:
        assert np.ptp(allocation) > 0


@pytest.mark.parametrize("name", ["", "Uniform", "nope"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ConfigError) as caught:
        make_allocator(name)
    assert all(known in str(caught.value) for known in ALLOCATORS)
    assert repr(name) in str(caught.value)
