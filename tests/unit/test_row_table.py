"""Where keys are rotated to: no further than the fullest head, at about the same distance for every head."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restkv_local.errors import PlanError
from restkv_local.row_table import RowTable, spread_rows
from restkv_local.types import EvictionPlan


def table_of(*heads):
    """One layer whose heads hold these true positions, aligned at the newest."""
    used = max(map(len, heads))
    return np.array([[[-1] * (used - len(head)) + list(head) for head in heads]], np.int32)


def present(values, positions):
    return [list(v[p >= 0]) for v, p in zip(values[0], positions[0], strict=True)]


def test_equal_heads_are_packed_tight():
    positions = table_of([0, 5, 90, 99], [0, 1, 98, 99])
    np.testing.assert_array_equal(spread_rows(positions)[0], [[0, 1, 2, 3]] * 2)


def test_a_head_with_few_rows_looks_as_far_back_as_a_full_one():
    positions = table_of(range(10), [0, 1, 8, 9], [2, 9])
    full, few, two = present(spread_rows(positions), positions)
    assert full == list(range(10))
    assert few == [0, 1, 8, 9]
    assert two == [2, 9]


def test_gaps_share_the_room_in_proportion():
    # 100 tokens, the fullest head has 11 places: few has room for 8 gaps of 97.
    positions = table_of([*range(10), 99], [0, 50, 99])
    full, few = present(spread_rows(positions), positions)
    assert full == list(range(11))
    assert few == [0, 5, 10]


@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_rows_stay_in_order_and_neighbours_beside_each_other(seed, n_tokens):
    rng = np.random.default_rng(seed)
    heads = []
    for _ in range(3):
        kept = rng.random(n_tokens) < rng.random()
        kept[-1] = True
        heads.append(np.flatnonzero(kept))
    positions = table_of(*heads)
    used = positions.shape[-1]
    for head, turned_to in zip(heads, present(spread_rows(positions), positions), strict=True):
        assert turned_to[0] >= 0
        assert turned_to[-1] == used - 1
        steps, gaps = np.diff(turned_to), np.diff(head)
        assert (steps >= 1).all()
        assert (steps <= gaps).all()


@pytest.mark.parametrize("n_keep", [[3, 5], [5, 3], [4, 4]])
def test_the_turns_add_up_over_evictions(n_keep):
    table = RowTable(1, 2, 64)
    turned = {}  # (head, true position): sum of what its key was turned by, from where it was read
    rng = np.random.default_rng(0)
    for event in range(4):
        for position in range(10 * event, 10 * event + 10):
            for head in range(2):
                turned[head, position] = table.used + position - 10 * event
        table.append(10 * event, 10)
        keep = np.zeros((1, 2, table.used), bool)
        for head, n in enumerate(n_keep):
            rows = np.flatnonzero(table.positions[0, head] >= 0)
            keep[0, head, [*rng.choice(rows[:-1], n - 1, replace=False), rows[-1]]] = True
        plan = EvictionPlan(keep, np.array([n_keep], np.int32))
        _, heads, slots = np.nonzero(keep)
        moved = list(zip(heads, table.positions[0, heads, slots], strict=True))
        for key, turn in zip(moved, table.keep(plan), strict=True):
            turned[key] += turn
        for head in range(2):
            rows = table.positions[0, head] >= 0
            found = table.turned_to[0, head][rows]
            expected = [turned[head, p] for p in table.positions[0, head][rows]]
            np.testing.assert_array_equal(found, expected)


def test_a_plan_of_other_rows_is_refused():
    table = RowTable(1, 2, 64)
    table.append(0, 10)
    plan = EvictionPlan(np.ones((1, 2, 9), bool), np.full((1, 2), 9, np.int32))
    with pytest.raises(PlanError, match=r"must be \(1, 2, 10\).*got \(1, 2, 9\)"):
        table.keep(plan)
    assert table.used == 10
