"""Compaction against loops of copies, and re-rotated keys against keys rotated once."""

import numpy as np
import pytest

from restkv_local.errors import NativeError
from restkv_local.types import EvictionPlan
from tests import builders

pytestmark = pytest.mark.native


def random_keep(native, n_keep, seed=0):
    """Mask of ``n_keep`` rows in each layer and KV head, a number or an array of them."""
    rng = np.random.default_rng(seed)
    shape = len(native.layers), native.layers[0].n_head_kv
    keep = np.zeros((*shape, native.used), bool)
    for head, n in zip(np.ndindex(shape), np.broadcast_to(n_keep, shape).flat, strict=True):
        keep[head][rng.choice(native.used, n, replace=False)] = True
    return keep


def keep_all(native):
    return np.ones((len(native.layers), native.layers[0].n_head_kv, native.used), bool)


def slot_shift(keep):
    """Change of slot of every row that stays: what compact positions rotate by."""
    plan = EvictionPlan(keep, np.count_nonzero(keep, axis=-1))
    source, target = plan.moves()
    return (target % plan.n_keep.max() - source % keep.shape[-1]).astype(np.int32)


@pytest.mark.parametrize("type_kv", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("n_head_kv", [8, 4, 2, 1])
def test_compaction_equals_a_loop_of_copies(open_native, tokens, n_head_kv, type_kv):
    """Every survivor keeps its exact value: quantised rows move without new rounding."""
    model = builders.llama(n_head=8, n_head_kv=n_head_kv, head_dim=64, n_embd=64)
    native = open_native(model, type_k=type_kv, type_v=type_kv)
    native.decode(tokens(64))
    native.decode(tokens(30, seed=1))
    keep = random_keep(native, 41)
    before = [(native.read(i, "k"), native.read(i, "v")) for i in range(len(native.layers))]
    native.compact(keep, None, native.position)
    assert native.used == 41
    for i, pair in enumerate(before):
        for tensor, old in zip("kv", pair, strict=True):
            expected = np.empty((n_head_kv, 41, 64), np.float32)
            for h in range(n_head_kv):
                for j, slot in enumerate(np.flatnonzero(keep[i, h])):
                    expected[h, j] = old[h, slot]
            np.testing.assert_array_equal(native.read(i, tensor), expected)


ROPE_MODELS = {
    "norm": builders.llama(head_dim=64),
    "neox": builders.qwen2(head_dim=64),
    "neox-gemma": builders.gemma(head_dim=64),
    "neox-partial": builders.gemma(head_dim=64, metadata={"gemma.rope.dimension_count": 40}),
    "norm-freq-factors": builders.llama(head_dim=64, rope_freqs=True),
    "norm-yarn": builders.llama(head_dim=64, yarn_factor=4.0),
    "neox-yarn": builders.qwen2(head_dim=64, yarn_factor=4.0),
}


@pytest.mark.parametrize("model", ROPE_MODELS.values(), ids=ROPE_MODELS)
def test_rerotation_equals_direct_rotation(open_native, tokens, model):
    """Keys of the first layer depend on token and position alone, so both ways can be compared."""
    text = tokens(60)
    native = open_native(model)
    native.decode(text)
    keep = random_keep(native, 25)
    keep[:] = keep[0, 0]  # the same tokens everywhere, so that they can be read again
    native.compact(keep, slot_shift(keep), 24)
    moved = native.read(0, "k")
    direct = open_native(model)
    direct.decode([text[i] for i in np.flatnonzero(keep[0, 0])])
    expected = direct.read(0, "k")
    error = np.linalg.norm(moved - expected) / np.linalg.norm(expected)
    assert error < 1e-3
    # Magnitude is kept too: YaRN's factor must not be applied again.
    norms = np.linalg.norm(moved, axis=-1) / np.linalg.norm(expected, axis=-1)
    np.testing.assert_allclose(norms, 1.0, atol=2e-3)


@pytest.mark.parametrize("model", ROPE_MODELS.values(), ids=ROPE_MODELS)
def test_many_keys_turn_as_a_few_do(open_native, tokens, model):
    """On a CPU each angle is computed once where keys outnumber angles, and for each key where not."""

    def turn(*shifts):
        native = open_native(model)
        native.decode(tokens(60))
        n_keys = len(native.layers) * native.layers[0].n_head_kv * 60
        for shift in shifts:
            native.compact(keep_all(native), np.full(n_keys, shift), 59)
        return native.read(0, "k")

    still, many, few = turn(), turn(-30), turn(-30, -30, 30)  # forward each key for itself
    size = np.linalg.norm(still)
    assert np.linalg.norm(many - still) > 0.1 * size
    assert np.linalg.norm(many - few) < 2e-3 * size


def test_keys_that_do_not_move_are_not_touched(open_native, tokens):
    native = open_native(ROPE_MODELS["norm-yarn"])
    native.decode(tokens(40))
    before = native.read(0, "k")
    native.compact(keep_all(native), np.zeros(2 * 2 * 40, np.int32), 39)
    np.testing.assert_array_equal(native.read(0, "k"), before)


@pytest.mark.parametrize("name", ["norm", "neox-yarn"])
def test_rounding_after_500_events_stays_within_one_percent(open_native, tokens, name):
    native = open_native(ROPE_MODELS[name])
    native.decode(tokens(60))
    start = native.read(0, "k").astype(np.float64)
    for event in range(500):
        # There and back again by odd amounts: every row turns at every event.
        step = 7 + 13 * (event // 2 % 5)
        shift = np.full(2 * 2 * 60, step if event % 2 == 0 else -step)
        native.compact(keep_all(native), shift, 59)
    error = np.linalg.norm(native.read(0, "k") - start) / np.linalg.norm(start)
    assert error < 0.01


def test_decoding_goes_on_after_compaction_in_both_kinds_of_positions(open_native, tokens):
    for shifted in (False, True):
        native = open_native(builders.llama(head_dim=64))
        native.decode(tokens(64))
        keep = random_keep(native, 20)
        shift = slot_shift(keep) if shifted else None
        native.compact(keep, shift, 19 if shifted else native.position)
        assert native.position == (19 if shifted else 63)
        native.decode(tokens(10, seed=3))
        assert native.used == 30
        assert native.position == (29 if shifted else 73)
        assert np.isfinite(native.logits()).all()


def test_keeping_every_row_changes_nothing(open_native, tokens):
    logits = []
    for compacted in (False, True):
        native = open_native(builders.llama(head_dim=64))
        native.decode(tokens(50))
        if compacted:
            native.compact(keep_all(native), None, native.position)
        native.decode(tokens(3, seed=5))
        logits.append(native.logits().copy())
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([3, 2], r"keep\[1\] = 2 is not in \(3, 20\)"),
        ([3, 3], r"keep\[1\] = 3 is not in \(3, 20\)"),
        ([0, 20], r"keep\[1\] = 20 is not in \(0, 20\)"),
        ([-1, 4], r"keep\[0\] = -1 is not in \(-1, 20\)"),
    ],
)
def test_a_bad_plan_is_refused_and_changes_nothing(open_native, tokens, keep, message):
    native = open_native(builders.llama(head_dim=64))
    native.decode(tokens(20))
    before = native.read(0, "k")
    n_keep, slots = np.full((2, 2), 2, np.int32), np.tile(np.array(keep, np.int32), 4)
    with pytest.raises(NativeError, match=message):
        native._restkv.compact(native._ctx, n_keep, slots, None, native.position)
    assert native.used == 20
    np.testing.assert_array_equal(native.read(0, "k"), before)


@pytest.mark.parametrize("type_k", ["q8_0", "q4_0"])
def test_quantised_keys_are_never_rotated_again(open_native, tokens, type_k):
    native = open_native(builders.llama(head_dim=64), type_k=type_k)
    native.decode(tokens(20))
    with pytest.raises(NativeError, match="rounding adds up"):
        native.compact(keep_all(native), np.zeros(2 * 2 * 20, np.int32), 19)
