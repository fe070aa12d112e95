import subprocess
import sys

import pytest

from restkv_local.errors import ConfigError, ModelError, UnsupportedModelError
from restkv_local.model.architectures import REFUSED, VERIFIED
from restkv_local.model.model_file import (
    check_supported,
    kv_bytes_per_token,
    kv_row_bytes,
    read_model,
    supported_positions,
    swa_cache_bytes,
)
from tests import builders
from tests.model.raw_gguf import RawGGUF, array, model_keys, scalar, strings, tensor, text


def keys_of(arch, **changes):
    """The smallest model's keys under another architecture's name."""
    changes = {name.replace("llama__", f"{arch}__"): value for name, value in changes.items()}
    keys = {name.replace("llama.", f"{arch}.", 1): v for name, v in model_keys().items()}
    keys["general.architecture"] = text(arch)
    keys.update({name.replace("__", "."): value for name, value in changes.items()})
    return [(name, value) for name, value in keys.items() if value is not None]


def heads_of(head_dim):
    """Metadata of a llama with heads of this size."""
    keys = ("attention__key_length", "attention__value_length", "rope__dimension_count")
    return {f"llama__{key}": scalar("uint32", head_dim) for key in keys}


def shape_of(tmp_path, arch="llama", tensors=None, **changes):
    raw = RawGGUF(keys=keys_of(arch, **changes))
    if tensors is not None:
        raw.tensors = tensors
    return read_model(raw.write(tmp_path / "m.gguf"))


GOOD = {
    "llama MHA": builders.llama(n_head_kv=4),
    "llama GQA 2": builders.llama(),
    "llama GQA 3": builders.llama(n_head=6),
    "llama GQA 4": builders.llama(n_head_kv=1),
    "llama GQA 8": builders.llama(n_head=8, n_head_kv=1),
    "llama d 64": builders.llama(head_dim=64, n_head=2, n_head_kv=1),
    "rope factors": builders.llama(rope_freqs=True),
    "yarn": builders.llama(yarn_factor=4.0),
    "mistral": builders.mistral(),
    "qwen2": builders.qwen2(),
    "qwen3": builders.qwen3(),
    "gemma": builders.gemma(),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_plain_model_allows_both_positions(tmp_path, name):
    model = GOOD[name]
    shape = read_model(model.write(tmp_path / "m.gguf"))
    check_supported(shape)
    assert (shape.n_head, shape.n_head_kv) == (model.n_head, model.n_head_kv)
    assert shape.head_dim_k == shape.head_dim_v == shape.n_rot == model.head_dim
    assert shape.n_embd == model.width
    assert shape.rope_type == ("norm" if model.arch == "llama" else "neox")
    assert not any(shape.swa_layers)
    assert supported_positions(shape) == ("original", "compact")


def test_interleaved_windows_follow_the_pattern_and_keep_original_positions(tmp_path):
    shape = read_model(builders.gemma2().write(tmp_path / "2.gguf"))
    assert shape.swa_layers == (True, False, True, False)
    assert (shape.n_swa, shape.softcap) == (64, 50.0)
    shape = read_model(builders.gemma3(n_layer=8).write(tmp_path / "3.gguf"))
    assert shape.full_layers == (5,)
    assert (shape.n_swa, shape.softcap) == (64, 0.0)
    assert supported_positions(shape) == ("original",)
    check_supported(shape)
    with pytest.raises(ConfigError, match="sliding-window layers"):
        check_supported(shape, positions="compact")


def test_the_files_own_window_pattern_wins(tmp_path):
    shape = read_model(builders.gemma3(n_layer=4, swa_period=2).write(tmp_path / "m.gguf"))
    assert shape.swa_layers == (True, False, True, False)
    flags = array("bool", [False, True])
    shape = shape_of(
        tmp_path,
        "gemma3",
        gemma3__attention__sliding_window=scalar("uint32", 64),
        gemma3__attention__sliding_window_pattern=flags,
    )
    assert shape.swa_layers == (False, True)


def test_gemma3_without_a_window_is_plain(tmp_path):
    shape = shape_of(tmp_path, "gemma3")
    assert not any(shape.swa_layers)
    assert supported_positions(shape) == ("original", "compact")


def test_a_window_key_is_ignored_where_llama_cpp_ignores_it(tmp_path):
    for arch in ("llama", "qwen2", "phi3"):
        shape = shape_of(
            tmp_path, arch, **{f"{arch}__attention__sliding_window": scalar("uint32", 64)}
        )
        assert not any(shape.swa_layers)


def test_windows_in_all_layers_leave_nothing_to_evict(tmp_path):
    shape = read_model(builders.gemma3(swa_period=0).write(tmp_path / "m.gguf"))
    with pytest.raises(UnsupportedModelError, match="nothing to evict"):
        check_supported(shape)


@pytest.mark.parametrize(
    "pattern", [scalar("uint32", 1), array("bool", [False, False])], ids=["period", "flags"]
)
def test_a_window_that_no_layer_uses_is_refused(tmp_path, pattern):
    with pytest.raises(ModelError, match="a window of 64 tokens is used in none of 2 layers"):
        shape_of(
            tmp_path,
            "gemma3",
            gemma3__attention__sliding_window=scalar("uint32", 64),
            gemma3__attention__sliding_window_pattern=pattern,
        )


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
@pytest.mark.parametrize("n_rot", [0, 7, 16, 1000, 2**32 - 1])
def test_window_layers_must_rotate_as_the_others(tmp_path, arch, n_rot):
    def shape_with(value):
        keys = {
            f"{arch}__attention__sliding_window": scalar("uint32", 64),
            f"{arch}__attention__sliding_window_pattern": scalar("uint32", 2),
            f"{arch}__rope__dimension_count_swa": scalar("uint32", value),
        }
        return shape_of(tmp_path, arch, **keys)

    assert shape_with(32).n_rot == 32
    with pytest.raises(ModelError, match=f"dimension_count_swa is {n_rot}, it must be the 32"):
        shape_with(n_rot)


def test_experts_in_one_group_must_outnumber_it(tmp_path):
    def shape_with(n_expert):
        keys = {
            "qwen3moe__expert_count": scalar("uint32", n_expert),
            "qwen3moe__expert_used_count": scalar("uint32", 1),
            "qwen3moe__expert_group_count": scalar("uint32", 1),
        }
        return shape_of(tmp_path, "qwen3moe", **keys)

    check_supported(shape_with(2))
    with pytest.raises(ModelError, match="expert_group_count is 1 of 1 experts"):
        shape_with(1)


def test_a_tokenizer_of_other_architectures_is_refused(tmp_path):
    for tokenizer in ("bert", "t5", "rwkv", "plamo2"):
        with pytest.raises(UnsupportedModelError, match=f"tokenizer '{tokenizer}' is not verified"):
            check_supported(shape_of(tmp_path, tokenizer__ggml__model=text(tokenizer)))


def test_a_sentencepiece_vocabulary_must_spell_every_byte(tmp_path):
    """llama.cpp looks for ``<0xXX>``, then for the byte itself, and ends the process without either."""

    def shape_with(tokens):
        keys = {"tokenizer__ggml__model": text("llama"), "tokenizer__ggml__tokens": strings(tokens)}
        return shape_of(tmp_path, **keys)

    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    check_supported(shape_with(spelled))
    bare = [*spelled[:0x41], "A", *spelled[0x42:0xE4], b"\xe4", *spelled[0xE5:]]
    check_supported(shape_with(bare))
    for tokens, reason in (
        (spelled[1:], "1 of 256 bytes, 0x00"),
        (["\0", *spelled[1:]], "1 of 256 bytes, 0x00"),
        ([token.lower() for token in spelled], "156 of 256 bytes, 0x0A"),
        (["a"], "255 of 256 bytes, 0x00"),
    ):
        with pytest.raises(ModelError, match=f"no token for {reason}"):
            shape_with(tokens)


def test_long_rope_allows_compact_positions_only(tmp_path):
    shape = read_model(builders.llama(long_rope=True, head_dim=64).write(tmp_path / "m.gguf"))
    assert shape.has_long_rope
    assert supported_positions(shape) == ("compact",)
    check_supported(shape)
    with pytest.raises(ConfigError, match="--positions compact"):
        check_supported(shape, positions="original")
    # Neither choice is left with quantised keys: both reasons in one line.
    with pytest.raises(ConfigError, match=r"--positions compact; and .*q8_0"):
        check_supported(shape, type_k="q8_0")


def test_layers_without_rope_forbid_compact_positions(tmp_path):
    shape = read_model(builders.smollm3().write(tmp_path / "m.gguf"))
    assert shape.nope_layers == (False, False, False, True)
    check_supported(shape)
    with pytest.raises(ConfigError, match="layers without RoPE"):
        check_supported(shape, positions="compact")
    shape = shape_of(tmp_path, "granite", granite__rope__scaling__finetuned=scalar("bool", False))
    assert shape.rope_type == "none"
    with pytest.raises(ConfigError, match="has no RoPE"):
        check_supported(shape, positions="compact")


@pytest.mark.parametrize("type_k", ["q8_0", "q4_0", "bf16"])
def test_compact_positions_want_precise_keys(tmp_path, type_k):
    shape = shape_of(tmp_path, **heads_of(64))
    with pytest.raises(ConfigError, match=f"rounding of {type_k} keys"):
        check_supported(shape, type_k=type_k, positions="compact")
    check_supported(shape, type_k=type_k, type_v="q4_0", positions="original")
    check_supported(shape, type_v="q4_0", positions="compact")
    assert supported_positions(shape, type_k=type_k) == ("original",)


@pytest.mark.parametrize("option", ["type_k", "type_v"])
@pytest.mark.parametrize(
    ("head_dim", "reason"),
    [(80, "80 is not a multiple of 32"), (32, "with head_dim 32 they have 34 bytes")],
)
def test_quantised_rows_want_whole_blocks_and_words(tmp_path, option, head_dim, reason):
    shape = shape_of(tmp_path, **heads_of(head_dim))
    check_supported(shape)
    with pytest.raises(ConfigError, match=reason):
        check_supported(shape, **{option: "q8_0"}, positions="original")


@pytest.mark.parametrize("arch", sorted(REFUSED))
def test_a_refused_architecture_names_its_reason(tmp_path, arch):
    with pytest.raises(UnsupportedModelError) as caught:
        check_supported(shape_of(tmp_path, arch))
    assert arch in str(caught.value)
    assert REFUSED[arch] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_is_not_verified(tmp_path):
    with pytest.raises(UnsupportedModelError, match="'gptx' is not verified"):
        check_supported(shape_of(tmp_path, "gptx"))


def test_a_refused_model_without_a_shape_names_the_reason_not_the_key(tmp_path):
    """mamba has no head count: the missing key would only confuse."""
    with pytest.raises(UnsupportedModelError, match="recurrent"):
        shape_of(tmp_path, "mamba", mamba__attention__head_count=None)


def test_no_architecture_is_both_verified_and_refused():
    assert not VERIFIED.keys() & REFUSED.keys()


PROPERTIES = {
    "causal": ("attention.causal", scalar("bool", False), "not causal"),
    "mla": ("attention.kv_lora_rank", scalar("uint32", 512), "MLA"),
    "ssm": ("ssm.state_size", scalar("uint32", 16), "recurrent"),
    "alibi": ("attention.max_alibi_bias", scalar("float32", 8.0), "ALiBi"),
    "shared": ("attention.shared_kv_layers", scalar("uint32", 2), "share one KV"),
    "mrope": ("rope.dimension_sections", array("int32", [8, 4, 4, 0]), "M-RoPE"),
    "nextn": ("nextn_predict_layers", scalar("uint32", 1), "nextn"),
    "value dim": ("attention.value_length", scalar("uint32", 64), "must be equal"),
    "window dim": ("attention.key_length_swa", scalar("uint32", 64), "another head size"),
    "head counts": ("attention.head_count", array("uint32", [2, 4]), "differs between layers"),
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_refuses_even_a_verified_architecture(tmp_path, name):
    key, value, reason = PROPERTIES[name]
    with pytest.raises(UnsupportedModelError, match=reason):
        check_supported(shape_of(tmp_path, **{f"llama__{key.replace('.', '__')}": value}))


@pytest.mark.parametrize(
    ("name", "reason"), [("attn_sinks.weight", "sinks"), ("attn_gate.weight", "gate")]
)
def test_a_tensor_between_attention_and_output_refuses(tmp_path, name, reason):
    shape = shape_of(tmp_path, tensors=[tensor(f"blk.0.{name}", (64, 4))])
    with pytest.raises(UnsupportedModelError, match=reason):
        check_supported(shape)


def test_text_only_sections_are_no_mrope(tmp_path):
    sections = array("int32", [0, 0, 0, 0])
    check_supported(shape_of(tmp_path, "glm4", glm4__rope__dimension_sections=sections))


# bytes of published shapes, in KiB per token: f16, q8_0, q4_0
@pytest.mark.parametrize(
    ("n_layer", "n_head_kv", "head_dim", "f16", "q8_0", "q4_0"),
    [
        (30, 3, 64, 22.5, 11.953125, 6.328125),  # SmolLM2-135M
        (32, 8, 128, 128, 68, 36),  # Llama-3-8B
        (28, 4, 128, 56, 29.75, 15.75),  # Qwen2.5-7B
        (32, 32, 96, 384, 204, 108),  # Phi-3-mini
        (32, 32, 128, 512, 272, 144),  # Llama-2-7B
    ],
)
def test_kv_bytes_per_token(tmp_path, n_layer, n_head_kv, head_dim, f16, q8_0, q4_0):
    shape = shape_of(
        tmp_path,
        llama__block_count=scalar("uint32", n_layer),
        llama__attention__head_count=scalar("uint32", n_head_kv),
        llama__attention__head_count_kv=scalar("uint32", n_head_kv),
        llama__attention__key_length=scalar("uint32", head_dim),
        llama__attention__value_length=scalar("uint32", head_dim),
        llama__rope__dimension_count=scalar("uint32", head_dim),
    )
    for kind, kib in {"f16": f16, "bf16": f16, "f32": 2 * f16, "q8_0": q8_0, "q4_0": q4_0}.items():
        assert kv_bytes_per_token(shape, kind, kind) == kib * 1024
    assert kv_bytes_per_token(shape, "f16", "q8_0") == (f16 + q8_0) / 2 * 1024
    assert swa_cache_bytes(shape, 512) == 0


def test_kv_bytes_count_full_layers_and_windows_apart(tmp_path):
    shape = read_model(builders.gemma3().write(tmp_path / "m.gguf"))
    assert kv_row_bytes(shape) == 128
    assert kv_bytes_per_token(shape) == 1 * 2 * 128
    # 64 + 512 tokens, rounded up to 768 cells, in five layers of two heads
    assert swa_cache_bytes(shape, 512) == 5 * 2 * 768 * 128


def test_unknown_names_are_refused(tmp_path):
    shape = shape_of(tmp_path)
    with pytest.raises(ConfigError, match="q5_0"):
        check_supported(shape, type_k="q5_0")
    with pytest.raises(ConfigError, match="sideways"):
        check_supported(shape, positions="sideways")


def test_reading_a_shape_needs_no_numpy(tmp_path):
    path = builders.llama().write(tmp_path / "m.gguf")
    code = (
        "import sys; from restkv_local.model.model_file import read_model; "
        f"print(read_model({str(path)!r}).n_layer); "
        "assert not {'numpy', 'gguf', 'llama_cpp'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
