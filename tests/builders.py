"""Writes tiny random GGUF models that llama.cpp really loads.

Every builder takes keywords only and has small defaults. Weights are random but scaled like a
trained model's, so that attention is neither flat nor one-hot and outputs stay finite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize

F32 = npt.NDArray[np.float32]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
WORDS = ("the", "and", "of", "to", "in", "is", "code", "answer", "question", "number")


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """Shape of a tiny model; ``write`` makes the file.

    ``n_embd`` is ``n_head * head_dim`` unless given. ``rope_freqs`` adds a tensor of frequency
    factors, ``long_rope`` a pair of them. A large ``q_scale`` makes attention one-hot.
    ``metadata`` overrides or adds keys; a None removes one.
    """

    arch: str = "llama"
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 32
    n_embd: int | None = None
    n_ff: int = 96
    n_ctx_train: int = 2048
    vocab: str = "spm"
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    tied_output: bool = False
    rope_freqs: bool = False
    long_rope: bool = False
    n_swa: int = 0
    swa_period: int | None = None
    attn_softcap: float | None = None
    final_softcap: float | None = None
    yarn_factor: float | None = None
    weight_type: GGMLQuantizationType = GGMLQuantizationType.F32
    q_scale: float = 2.0
    seed: int = 0
    metadata: Mapping[str, int | float | str | bool | None] | None = None

    @property
    def width(self) -> int:
        """Residual width."""
        return self.n_embd or self.n_head * self.head_dim

    def write(self, path: Path) -> Path:
        """Write the model and return its path."""
        _write(self, path)
        return path


def llama(**changes: Any) -> TinyModel:
    """Llama: consecutive-pair RoPE, separate output matrix. Use n_head_kv=n_head for MHA."""
    return replace(TinyModel(), **changes)


def mistral(**changes: Any) -> TinyModel:
    """Mistral: the llama architecture with its own context and a window key that is ignored."""
    settings = {"n_ctx_train": 32768, "metadata": {"llama.attention.sliding_window": 64}}
    return llama(**{**settings, **changes})


def qwen2(**changes: Any) -> TinyModel:
    """Qwen2: half-split RoPE, biases on Q, K and V, byte-level BPE."""
    settings = {"arch": "qwen2", "qkv_bias": True, "vocab": "bpe", "tied_output": True}
    return llama(**{**settings, **changes})


def qwen3(**changes: Any) -> TinyModel:
    """Qwen3: half-split RoPE, norms on Q and K."""
    return llama(**{"arch": "qwen3", "qk_norm": True, "vocab": "bpe", **changes})


def gemma(**changes: Any) -> TinyModel:
    """Gemma: half-split RoPE, output tied to the embedding, MQA."""
    return llama(**{"arch": "gemma", "n_head_kv": 1, "tied_output": True, **changes})


def gemma2(**changes: Any) -> TinyModel:
    """Gemma 2: every second layer has a sliding window; soft-caps."""
    settings = {
        "arch": "gemma2",
        "n_layer": 4,
        "tied_output": True,
        "post_norms": True,
        "n_swa": 64,
        "attn_softcap": 50.0,
        "final_softcap": 30.0,
    }
    return llama(**{**settings, **changes})


def gemma3(**changes: Any) -> TinyModel:
    """Gemma 3: five sliding-window layers, then a full one; norms on Q and K."""
    settings = {
        "arch": "gemma3",
        "n_layer": 6,
        "tied_output": True,
        "post_norms": True,
        "qk_norm": True,
        "n_swa": 64,
    }
    return llama(**{**settings, **changes})


def smollm3(**changes: Any) -> TinyModel:
    """SmolLM3: every fourth layer has no RoPE."""
    return llama(**{"arch": "smollm3", "n_layer": 4, **changes})


# writing


def _write(model: TinyModel, path: Path) -> None:
    writer = GGUFWriter(path, model.arch)
    _write_metadata(writer, model)
    tokens = _write_vocab(writer, model.vocab)
    for key, value in (model.metadata or {}).items():
        _override(writer, key, value)
    rng = np.random.default_rng(model.seed)
    for name, data in _tensors(model, len(tokens), rng).items():
        _add_tensor(writer, name, data, model.weight_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_metadata(writer: GGUFWriter, model: TinyModel) -> None:
    writer.add_name(f"tiny {model.arch}")
    writer.add_context_length(model.n_ctx_train)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.n_layer)
    writer.add_feed_forward_length(model.n_ff)
    writer.add_head_count(model.n_head)
    writer.add_head_count_kv(model.n_head_kv)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(0)
    if model.n_swa:
        writer.add_sliding_window(model.n_swa)
    if model.swa_period is not None:
        writer.add_uint32(f"{model.arch}.attention.sliding_window_pattern", model.swa_period)
    if model.attn_softcap is not None:
        writer.add_attn_logit_softcapping(model.attn_softcap)
    if model.final_softcap is not None:
        writer.add_final_logit_softcapping(model.final_softcap)
    if model.yarn_factor is not None:
        original = int(model.n_ctx_train / model.yarn_factor)
        writer.add_string(f"{model.arch}.rope.scaling.type", "yarn")
        writer.add_float32(f"{model.arch}.rope.scaling.factor", model.yarn_factor)
        writer.add_uint32(f"{model.arch}.rope.scaling.original_context_length", original)
    if model.long_rope:
        writer.add_string(f"{model.arch}.rope.scaling.type", "longrope")
        writer.add_uint32(f"{model.arch}.rope.scaling.original_context_length", 512)


def _override(writer: GGUFWriter, key: str, value: int | float | str | bool | None) -> None:
    writer.kv_data[0].pop(key, None)
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)


def _write_vocab(writer: GGUFWriter, kind: str) -> list[str]:
    tokens = _spm_vocab(writer) if kind == "spm" else _bpe_vocab(writer)
    writer.add_token_list(tokens)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_uint32("tokenizer.ggml.eot_token_id", 4)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHATML)
    return tokens


def _special_types() -> list[TokenType]:
    return [TokenType.UNKNOWN, *[TokenType.CONTROL] * (len(SPECIALS) - 1)]


def _spm_vocab(writer: GGUFWriter) -> list[str]:
    """Specials, all bytes, printable characters and some words: any text can be tokenised."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["▁", *(chr(code) for code in range(0x21, 0x7F))]
    # Every prefix of a word: SPM merges pairs that are tokens themselves.
    prefixes = ("▁" + word for word in WORDS)
    pieces = list(dict.fromkeys(p[:n] for p in prefixes for n in range(2, len(p) + 1)))
    tokens = [*SPECIALS, *byte_tokens, *letters, *pieces]
    types = [
        *_special_types(),
        *[TokenType.BYTE] * len(byte_tokens),
        *[TokenType.NORMAL] * (len(letters) + len(pieces)),
    ]
    writer.add_tokenizer_model("llama")
    writer.add_token_scores(
        [0.0] * (len(SPECIALS) + 256) + [-float(i) for i in range(len(letters + pieces))]
    )
    writer.add_token_types(types)
    writer.add_add_space_prefix(True)
    return tokens


def _bpe_vocab(writer: GGUFWriter) -> list[str]:
    """Specials, GPT-2's 256 byte characters and merges that build some words."""
    letters = [_byte_character(byte) for byte in range(256)]
    merges: list[str] = []
    pieces: list[str] = []
    for word in WORDS:
        spelled = "Ġ" + word
        for n in range(2, len(spelled) + 1):
            if spelled[:n] not in pieces:
                pieces.append(spelled[:n])
                merges.append(f"{spelled[: n - 1]} {spelled[n - 1]}")
    tokens = [*SPECIALS, *letters, *pieces]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_types([*_special_types(), *[TokenType.NORMAL] * (len(letters) + len(pieces))])
    writer.add_token_merges(merges)
    return tokens


def _byte_character(byte: int) -> str:
    """Character that stands for a byte: itself where printable, else one past 0xFF, as GPT-2."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return chr(byte)
    others = [b for b in range(256) if b not in printable]
    return chr(256 + others.index(byte))


def _tensors(model: TinyModel, n_vocab: int, rng: np.random.Generator) -> dict[str, F32]:
    def matrix(n_out: int, n_in: int) -> F32:
        return (rng.standard_normal((n_out, n_in)) / np.sqrt(n_in)).astype(np.float32)

    def around_one(n: int) -> F32:
        return (1.0 + 0.1 * rng.standard_normal(n)).astype(np.float32)

    width, d = model.width, model.head_dim
    q_width, kv_width = model.n_head * d, model.n_head_kv * d
    # A tied embedding is the output matrix too: logits keep a spread of about 1.
    spread = np.float32(1.0 if model.tied_output else np.sqrt(width))
    tensors = {"token_embd.weight": spread * matrix(n_vocab, width)}
    tensors["output_norm.weight"] = around_one(width)
    if not model.tied_output:
        tensors["output.weight"] = matrix(n_vocab, width)
    if model.rope_freqs:
        tensors["rope_freqs.weight"] = np.linspace(1.0, 8.0, d // 2, dtype=np.float32)
    if model.long_rope:
        tensors["rope_factors_long.weight"] = np.linspace(1.0, 8.0, d // 2, dtype=np.float32)
        tensors["rope_factors_short.weight"] = np.ones(d // 2, np.float32)
    for layer in range(model.n_layer):
        block = f"blk.{layer}."
        # Q and K twice as large: logits spread enough for attention to have a shape.
        part: dict[str, F32] = {
            "attn_norm.weight": around_one(width),
            "attn_q.weight": np.float32(model.q_scale) * matrix(q_width, width),
            "attn_k.weight": 2 * matrix(kv_width, width),
            "attn_v.weight": matrix(kv_width, width),
            "attn_output.weight": matrix(width, q_width),
            "ffn_norm.weight": around_one(width),
            "ffn_gate.weight": matrix(model.n_ff, width),
            "ffn_up.weight": matrix(model.n_ff, width),
            "ffn_down.weight": matrix(width, model.n_ff),
        }
        if model.qkv_bias:
            for name, size in (("q", q_width), ("k", kv_width), ("v", kv_width)):
                part[f"attn_{name}.bias"] = (0.5 * rng.standard_normal(size)).astype(np.float32)
        if model.qk_norm:
            part["attn_q_norm.weight"] = around_one(d)
            part["attn_k_norm.weight"] = around_one(d)
        if model.post_norms:
            part["post_attention_norm.weight"] = around_one(width)
            part["post_ffw_norm.weight"] = around_one(width)
        tensors.update({block + name: data for name, data in part.items()})
    return tensors


def _add_tensor(
    writer: GGUFWriter, name: str, data: F32, weight_type: GGMLQuantizationType
) -> None:
    # As converters do: vectors stay float32.
    if data.ndim < 2 or weight_type == GGMLQuantizationType.F32:
        writer.add_tensor(name, data)
        return
    writer.add_tensor(name, quantize(data, weight_type), raw_dtype=weight_type)


# split files


def write_split(model: TinyModel, folder: Path, *, n_parts: int = 2) -> list[Path]:
    """Write a model as ``n_parts`` files, tensors dealt in order; the first holds the metadata."""
    rng = np.random.default_rng(model.seed)
    paths = [folder / f"tiny-{i + 1:05d}-of-{n_parts:05d}.gguf" for i in range(n_parts)]
    writers = [GGUFWriter(path, model.arch) for path in paths]
    _write_metadata(writers[0], model)
    tokens = _write_vocab(writers[0], model.vocab)
    tensors = list(_tensors(model, len(tokens), rng).items())
    for index, writer in enumerate(writers):
        writer.add_uint16("split.no", index)
        writer.add_uint16("split.count", n_parts)
        writer.add_int32("split.tensors.count", len(tensors))
        for name, data in _share(tensors, index, n_parts):
            _add_tensor(writer, name, data, model.weight_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def _share(
    tensors: Sequence[tuple[str, F32]], index: int, n_parts: int
) -> Sequence[tuple[str, F32]]:
    step = -(-len(tensors) // n_parts)
    return tensors[index * step : (index + 1) * step]
