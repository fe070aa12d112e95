import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from restkv_local.errors import UnsupportedModelError
from restkv_local.model.demo import resolve_model
from restkv_local.model.model_file import read_model
from restkv_local.model.output_factors import (
    OutputMatrices,
    factor_gram,
    fold_v_rotation,
    hadamard,
)
from restkv_local.policies.registry import make_policy
from tests import builders


def output_slices(reader, layer, n_head, d):
    """W_O^h of every head, (n_head, d, n_embd), read by the gguf package."""
    name = f"blk.{layer}.attn_output.weight"
    (found,) = (t for t in reader.tensors if t.name == name)
    weight = dequantize(found.data, found.tensor_type).reshape(-1, n_head * d)
    return weight.T.reshape(n_head, d, -1).astype(np.float64)


def assert_same_norms(factors, slices, rng, tolerance=1e-4):
    x = rng.standard_normal((factors.shape[0], 32, factors.shape[1]))
    found = np.linalg.norm(x.astype(np.float32) @ factors, axis=-1)
    np.testing.assert_allclose(found, np.linalg.norm(x @ slices, axis=-1), rtol=tolerance)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def tiny(tmp_path):
    return builders.llama(head_dim=64).write(tmp_path / "m.gguf")


def factor_all(path):
    matrices = OutputMatrices(read_model(path))
    return {layer: matrices.factor(layer) for layer in matrices.layers}


@pytest.mark.model
def test_factors_of_the_demo_model_keep_the_norms(rng):
    path = resolve_model("demo")
    reader = GGUFReader(path)
    computed = factor_all(path)
    assert sorted(computed) == list(range(30))
    for layer in (0, 13, 29):
        factors = computed[layer]
        assert factors.shape == (9, 64, 64)
        assert factors.dtype == np.float32
        assert_same_norms(factors, output_slices(reader, layer, 9, 64), rng)


@pytest.mark.parametrize(
    "model",
    [
        builders.llama(n_head_kv=4),
        builders.llama(n_head=8, n_head_kv=1),
        builders.llama(n_embd=96),  # fewer outputs than n_head * d
        builders.qwen2(),
        builders.gemma(),
        builders.llama(head_dim=64, weight_type=GGMLQuantizationType.Q8_0),
        builders.llama(head_dim=64, weight_type=GGMLQuantizationType.Q4_0),
        builders.llama(head_dim=64, weight_type=GGMLQuantizationType.BF16),
        builders.llama(head_dim=64, weight_type=GGMLQuantizationType.F16),
    ],
    ids=lambda model: f"{model.arch}-{model.n_head}x{model.head_dim}-{model.weight_type.name}",
)
def test_factors_keep_the_norms(tmp_path, rng, model):
    path = model.write(tmp_path / "m.gguf")
    reader = GGUFReader(path)
    for layer, factors in factor_all(path).items():
        assert_same_norms(factors, output_slices(reader, layer, model.n_head, model.head_dim), rng)


def test_fewer_outputs_than_values_make_the_gram_singular(tmp_path, rng):
    """n_embd 32 under heads of 64: half of each head's values do not reach the output."""
    path = builders.llama(head_dim=64, n_embd=32).write(tmp_path / "m.gguf")
    factors = factor_all(path)[0]
    assert np.isfinite(factors).all()
    assert_same_norms(factors, output_slices(GGUFReader(path), 0, 4, 64), rng, tolerance=1e-3)


@given(rank=st.integers(0, 16), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_any_rank_and_scale_can_be_factored(rank, scale, seed):
    rng = np.random.default_rng(seed)
    w = (scale * rng.standard_normal((2, 16, rank))).astype(np.float32)
    gram = w @ w.transpose(0, 2, 1)
    factors = factor_gram(gram)
    assert factors.dtype == np.float32
    assert np.isfinite(factors).all()
    np.testing.assert_allclose(
        factors @ factors.transpose(0, 2, 1),
        gram,
        atol=2e-6 * max(float(np.abs(gram).max()), 1e-30),
    )


def test_only_full_attention_layers_are_loaded(tmp_path):
    path = builders.gemma3().write(tmp_path / "m.gguf")
    assert list(factor_all(path)) == [5]


def test_an_output_scale_is_part_of_the_norm(tmp_path, tiny, rng):
    from gguf import GGUFWriter

    scaled = tmp_path / "scaled.gguf"
    reader = GGUFReader(tiny)
    writer = GGUFWriter(scaled, "llama")
    for entry in reader.fields.values():
        if not entry.name.startswith("GGUF.") and entry.name != "general.architecture":
            sub_type = entry.types[-1] if len(entry.types) > 1 else None
            writer.add_key_value(entry.name, entry.contents(), entry.types[0], sub_type=sub_type)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data)
    writer.add_tensor("blk.1.attn_output.scale", np.array([-0.5], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    plain, found = factor_all(tiny), factor_all(scaled)
    np.testing.assert_array_equal(found[0], plain[0])
    np.testing.assert_array_equal(found[1], 0.5 * plain[1])


# V rotation


def test_hadamard_is_symmetric_and_its_own_inverse():
    h = hadamard(64)
    np.testing.assert_array_equal(h, h.T)
    np.testing.assert_allclose(h @ h, np.eye(64), atol=1e-6)
    assert h[0, 0] == h[63, 0] == 0.125
    assert (h[1, :4] * 8).tolist() == [1, -1, 1, -1]


@pytest.mark.parametrize("d", [64, 128, 256])
def test_folded_factors_undo_the_rotation_of_stored_rows(rng, d):
    factors = rng.standard_normal((3, d, d)).astype(np.float32)
    v = rng.standard_normal((3, 8, d)).astype(np.float32)
    stored = (v.reshape(3, 8, -1, 64) @ hadamard(64)).reshape(v.shape)
    np.testing.assert_allclose(stored @ fold_v_rotation(factors), v @ factors, atol=2e-4)


def test_a_head_that_is_not_rotated_cannot_be_folded():
    with pytest.raises(ValueError, match="blocks of 64"):
        fold_v_rotation(np.zeros((1, 96, 96), np.float32))


# refusals


@pytest.mark.parametrize(
    ("rename", "reason"), [("attn_out", "has no tensor"), ("attn_output", "has shape")]
)
def test_a_missing_or_odd_output_matrix_is_refused(tmp_path, rename, reason):
    path = builders.llama().write(tmp_path / "m.gguf")
    shape = read_model(path)
    data = path.read_bytes()
    old = b"blk.1.attn_output.weight"
    if rename == "attn_out":
        data = data.replace(old, b"blk.1.attn_0utput.weight")
    else:  # the same bytes under transposed, unequal dimensions
        at = data.index(old) + len(old) + 4
        data = (
            data[:at] + (64).to_bytes(8, "little") + (256).to_bytes(8, "little") + data[at + 16 :]
        )
    path.write_bytes(data)
    with pytest.raises(UnsupportedModelError, match=f"{reason}.*such as caote or snapkv"):
        OutputMatrices(shape)


@pytest.mark.parametrize("policy", ["caote", "snapkv"])
def test_the_way_out_of_a_refusal_is_one(policy):
    request = make_policy(policy).request(8, 100, 6)
    assert request is not None
    assert not request.projects
