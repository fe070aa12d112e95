import numpy as np
import pytest

from restkv_local.errors import ConfigError
from restkv_local.planning import select_keep
from restkv_local.policies.lacache import LaCache, levels
from restkv_local.types import Observation


def evict(policy, rows, budget, *, layer, n_layer, n_sink=0, n_recent=0):
    """Rows of one KV head that stay."""
    observation = Observation(
        layer=layer, n_layer=n_layer, n_obs=0, n_window=0, positions=rows[None]
    )
    protected = np.zeros((1, rows.size), bool)
    protected[:, :n_sink] = True
    protected[:, rows.size - n_recent :] = True
    n_select = np.array([budget - n_sink - n_recent], np.int32)
    scores = policy.rerank(policy.score(observation), observation, ~protected, n_select)
    return rows[select_keep(scores, protected, np.array([budget], np.int32))[0]]


def read(policy, n_tokens, budget, chunk, **shape):
    """Rows that stay of a text read chunk by chunk."""
    rows = np.zeros(0, np.int32)
    for first in range(0, n_tokens, chunk):
        rows = np.concatenate([rows, np.arange(first, first + chunk, dtype=np.int32)])
        if rows.size > budget:
            rows = evict(policy, rows, budget, **shape)
    return rows


@pytest.mark.parametrize(
    ("n_layer", "span", "overlap", "ladder"),
    [
        (32, 16, 0, (2, 1)),
        (32, 8, 4, (7, 2)),
        (32, 9, 3, (5, 2)),
        (32, None, 0, (2, 1)),
        (28, 14, 0, (2, 1)),
        (24, 9, 7, (9, 5)),
        (30, None, 0, (2, 1)),
        (1, None, 0, (2, 1)),
        (16, 16, 0, (2, 1)),  # the published rule divides by zero here
    ],
)
def test_the_ladder_is_the_published_one(n_layer, span, overlap, ladder):
    assert LaCache(span=span, overlap=overlap).ladder(n_layer) == ladder


@pytest.mark.parametrize(("span", "overlap"), [(4, 4), (0, 0), (4, -1)])
def test_a_ladder_that_does_not_climb_is_refused(span, overlap):
    with pytest.raises(ConfigError, match="overlap"):
        LaCache(span=span, overlap=overlap)


def test_levels_are_how_many_compactions_a_token_survives():
    positions = np.arange(8, dtype=np.int32)
    # Ladders of two, one kept: the trailing binary digits shared with the layer.
    assert levels(positions, 0, 2, 1).tolist() == [3, 0, 1, 0, 2, 0, 1, 0]
    assert levels(positions, 1, 2, 1).tolist() == [0, 3, 0, 1, 0, 2, 0, 1]
    assert levels(positions, 2, 2, 1).tolist() == [1, 0, 3, 0, 1, 0, 2, 0]


def test_a_ladder_of_five_keeps_two_neighbours():
    kept = [np.flatnonzero(levels(np.arange(10), layer, 5, 2) > 0).tolist() for layer in range(5)]
    assert kept == [[0, 1, 5, 6], [1, 2, 6, 7], [2, 3, 7, 8], [3, 4, 8, 9], [0, 1, 5, 6]]


def test_an_absent_place_survives_nothing():
    assert levels(np.array([-1, -1, 4], np.int32), 0, 2, 1).tolist()[:2] == [0, 0]


def test_neighbouring_layers_keep_neighbouring_tokens():
    rows = np.arange(8, dtype=np.int32)
    kept = [evict(LaCache(), rows, 4, layer=layer, n_layer=4).tolist() for layer in range(4)]
    assert kept == [[0, 2, 4, 6], [1, 3, 5, 7], [0, 2, 4, 6], [1, 3, 5, 7]]


def test_no_more_ladders_are_compacted_than_needed_oldest_first():
    rows = np.arange(8, dtype=np.int32)
    assert evict(LaCache(), rows, 6, layer=0, n_layer=4).tolist() == [0, 2, 4, 5, 6, 7]
    assert evict(LaCache(), rows, 6, layer=1, n_layer=4).tolist() == [1, 3, 4, 5, 6, 7]


def test_a_second_compaction_starts_over_and_every_token_survives_somewhere():
    rows = np.arange(8, dtype=np.int32)
    kept = [evict(LaCache(), rows, 2, layer=layer, n_layer=4).tolist() for layer in range(4)]
    assert kept == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_a_whole_prompt_is_thinned_evenly():
    """As published: the beginning is not forgotten, at most one level sparser than the rest."""
    kept = read(LaCache(), 4096, 512, 4096, layer=5, n_layer=30, n_sink=4, n_recent=32)
    counts = np.histogram(kept, bins=8, range=(0, 4096))[0]
    assert counts[:-1].max() <= 2 * counts[:-1].min()
    assert counts[1:-1].min() == counts[1:-1].max()


def test_a_text_read_in_chunks_gets_sparser_with_age():
    kept = [
        read(LaCache(), 4096, 512, 64, layer=layer, n_layer=16, n_sink=4, n_recent=32)
        for layer in range(16)
    ]
    ages = 4095 - np.concatenate(kept)
    counts = np.histogram(ages, bins=range(128, 1500, 256))[0]
    # Half of the budget is one round: each older round is kept half as densely.
    np.testing.assert_allclose(counts[1:] / counts[:-1], 0.5, atol=0.07)
    # Together the layers remember more than twice what one of them does.
    assert np.unique(np.concatenate(kept)).size > 2 * 512


def test_the_newest_and_the_first_rows_are_never_compacted():
    kept = read(LaCache(), 2048, 128, 32, layer=3, n_layer=30, n_sink=4, n_recent=32)
    assert kept[:4].tolist() == [0, 1, 2, 3]
    assert kept[-32:].tolist() == list(range(2016, 2048))


def test_layers_stay_complementary_after_many_events():
    even, odd = (
        set(read(LaCache(), 2048, 256, 64, layer=layer, n_layer=30, n_recent=32))
        for layer in (2, 3)
    )
    old = range(2048 - 256)
    assert not {row for row in even & odd if row in old}


def test_heads_with_other_rows_are_each_taken_by_their_own():
    positions = np.array([np.arange(16), np.r_[np.full(8, -1), np.arange(8, 16)]], np.int32)
    observation = Observation(layer=0, n_layer=4, n_obs=0, n_window=0, positions=positions)
    candidates = positions >= 0
    scores = LaCache().rerank(
        LaCache().score(observation), observation, candidates, np.array([8, 4], np.int32)
    )
    keep = select_keep(scores, ~candidates, np.array([8, 4], np.int32), candidates)
    assert positions[0][keep[0]].tolist() == list(range(0, 16, 2))
    assert set(positions[1][keep[1]]) >= {8, 12}
