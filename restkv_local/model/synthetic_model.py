"""Turns the shape of a known model into a GGUF file of random weights, to measure without the real ones."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from platformdirs import user_cache_path

from restkv_local.control_characters import show_path
from restkv_local.errors import ConfigError, ModelError

Weights = Literal["q4_0", "q8_0", "f16"]
Vocabulary = Literal["full", "small"]

SPECIALS: Final = ("<|begin|>", "<|end|>")
# A vocabulary of this many tokens can still spell any text: two special ones, all bytes, one pair.
SMALL_VOCAB: Final = len(SPECIALS) + 256 + 1

_FILE_TYPES: Final = {
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "f16": LlamaFileType.MOSTLY_F16,
}
# Root mean square of a block's random integers: nibbles - 8, and int8.
_RMS: Final = {"q4_0": sqrt(21.5), "q8_0": sqrt(65535 / 12 + 0.25)}
_ALIGNMENT: Final = 32  # of tensor data, GGUF's default


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticShape:
    """What decides how much a model computes and stores.

    Attributes
    ----------
    arch : {"llama", "qwen2", "qwen3"}
        llama.cpp's name of the architecture.
    n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab, n_ctx_train : int
        Counts as in the model's own configuration.
    rope_freq_base : float
        Base of the rotation's frequencies.
    tied_output : bool
        The embedding is the output matrix too.
    qkv_bias, qk_norm, rope_factors : bool
        Biases on Q, K and V; norms on Q and K; a tensor of frequency factors.
    """

    arch: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    rope_freq_base: float
    tied_output: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_factors: bool = False


def _known(
    family: Mapping[str, Any],
    n_layer: int,
    n_embd: int,
    heads: tuple[int, int, int],
    n_ff: int,
    n_vocab: int,
    *,
    tied_output: bool = False,
) -> SyntheticShape:
    n_head, n_head_kv, head_dim = heads
    return SyntheticShape(
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_ff=n_ff,
        n_vocab=n_vocab,
        tied_output=tied_output,
        **family,
    )


def _family(
    arch: str, n_ctx_train: int, rope_freq_base: float, **features: bool
) -> Mapping[str, Any]:
    return {
        "arch": arch,
        "n_ctx_train": n_ctx_train,
        "rope_freq_base": rope_freq_base,
        **features,
    }


_LLAMA3: Final = _family("llama", 131072, 5e5, rope_factors=True)
_MISTRAL: Final = _family("llama", 32768, 1e6)
_QWEN2: Final = _family("qwen2", 32768, 1e6, qkv_bias=True)
_QWEN3: Final = _family("qwen3", 40960, 1e6, qk_norm=True)
_SMOLLM2: Final = _family("llama", 8192, 1e5)

# From the config.json that each model was published with: layers, residual width,
# (query heads, KV heads, head size), feed-forward width, vocabulary.
SHAPES: Final[dict[str, SyntheticShape]] = {
    "llama-3.1-8b": _known(_LLAMA3, 32, 4096, (32, 8, 128), 14336, 128256),
    "llama-3.2-1b": _known(_LLAMA3, 16, 2048, (32, 8, 64), 8192, 128256, tied_output=True),
    "llama-3.2-3b": _known(_LLAMA3, 28, 3072, (24, 8, 128), 8192, 128256, tied_output=True),
    "mistral-7b": _known(_MISTRAL, 32, 4096, (32, 8, 128), 14336, 32768),
    "qwen2.5-0.5b": _known(_QWEN2, 24, 896, (14, 2, 64), 4864, 151936, tied_output=True),
    "qwen2.5-1.5b": _known(_QWEN2, 28, 1536, (12, 2, 128), 8960, 151936, tied_output=True),
    "qwen2.5-3b": _known(_QWEN2, 36, 2048, (16, 2, 128), 11008, 151936, tied_output=True),
    "qwen2.5-7b": _known(_QWEN2, 28, 3584, (28, 4, 128), 18944, 152064),
    "qwen3-0.6b": _known(_QWEN3, 28, 1024, (16, 8, 128), 3072, 151936, tied_output=True),
    "qwen3-4b": _known(_QWEN3, 36, 2560, (32, 8, 128), 9728, 151936, tied_output=True),
    "qwen3-8b": _known(_QWEN3, 36, 4096, (32, 8, 128), 12288, 151936),
    "smollm2-135m": _known(_SMOLLM2, 30, 576, (9, 3, 64), 1536, 49152, tied_output=True),
    "smollm2-360m": _known(_SMOLLM2, 32, 960, (15, 5, 64), 2560, 49152, tied_output=True),
    "smollm2-1.7b": _known(_SMOLLM2, 24, 2048, (32, 32, 64), 8192, 49152, tied_output=True),
}


def find_shape(name: str) -> SyntheticShape:
    """Return a known shape.

    Raises
    ------
    ConfigError
        If there is none of this name; the message lists them.
    """
    if name not in SHAPES:
        raise ConfigError(f"shape must be one of {', '.join(SHAPES)}; got shape={name!r}")
    return SHAPES[name]


def synthetic_path(name: str, weights: Weights, vocabulary: Vocabulary) -> Path:
    """Return where the file of a known shape is kept, in the user's cache folder."""
    suffix = "" if vocabulary == "full" else "-small-vocabulary"
    return user_cache_path("restkv-local") / "shapes" / f"{name}-{weights}{suffix}.gguf"


def ensure_synthetic(
    name: str,
    *,
    weights: Weights = "q4_0",
    vocabulary: Vocabulary = "full",
    on_write: Callable[[Path, int], None] = lambda path, n_bytes: None,
) -> Path:
    """Return the file of a known shape; it is written once.

    Parameters
    ----------
    name : str
        A key of ``SHAPES``.
    weights : {"q4_0", "q8_0", "f16"}
        How every matrix is stored.
    vocabulary : {"full", "small"}
        ``"small"``: 259 tokens. Files of small models shrink, and the output matrix costs nothing any more.
    on_write : callable
        Called with the path and the bytes to come, before they are written.

    Raises
    ------
    ConfigError
        If there is no such shape.
    ModelError
        If the disk does not hold the file; nothing is left of it then.
    """
    shape = find_shape(name)
    path = synthetic_path(name, weights, vocabulary)
    # Files appear under their name when they are whole.
    if not path.exists():
        on_write(path, synthetic_bytes(shape, weights, vocabulary))
        write_synthetic(shape, path, name=name, weights=weights, vocabulary=vocabulary)
    return path


def synthetic_bytes(shape: SyntheticShape, weights: Weights, vocabulary: Vocabulary) -> int:
    """Return the size of the tensors in bytes; the header comes to a few MiB at most."""
    tensors = _tensors(shape, _n_vocab(shape, vocabulary))
    return sum(_padded(_n_bytes(tensor, weights)) for tensor in tensors)


def write_synthetic(
    shape: SyntheticShape,
    path: Path,
    *,
    name: str = "synthetic",
    weights: Weights = "q4_0",
    vocabulary: Vocabulary = "full",
    seed: int = 0,
) -> None:
    """Write a model of random weights, tensor by tensor, so that the file is whole or absent.

    Weights are spread as a trained model's: each layer's output is about as large as its input, attention is
    neither flat nor one-hot, logits are finite. What it says is noise.

    Parameters
    ----------
    shape : SyntheticShape
        The model.
    path : Path
        The file; its folder is made if need be.
    name : str
        What the model is called.
    weights : {"q4_0", "q8_0", "f16"}
        How every matrix is stored.
    vocabulary : {"full", "small"}
        As many tokens as the shape says, or 259.
    seed : int
        Of the weights.

    Raises
    ------
    ModelError
        If the disk does not hold the file; nothing is left of it then.
    """
    n_bytes = synthetic_bytes(shape, weights, vocabulary)
    shown = show_path(path)
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if n_bytes > free:
            raise ModelError(
                f"{shown} needs {n_bytes / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free on its disk;"
                " free some, or choose a smaller shape or smaller weights"
            )
        handle, part = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        _write(shape, Path(part), f"{name} (random weights)", weights, vocabulary, seed)
        Path(part).replace(path)
    except BaseException as error:  # Ctrl-C too leaves nothing behind
        if part is not None:
            with suppress(OSError):
                Path(part).unlink()
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise ModelError(f"cannot write {shown}: {reason}; nothing is left of it") from error
        raise


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor to come: (n_out, n_in) weights of a root mean square, or a vector of ones."""

    name: str
    size: tuple[int, ...]
    rms: float = 0.0


def _write(
    shape: SyntheticShape,
    path: Path,
    name: str,
    weights: Weights,
    vocabulary: Vocabulary,
    seed: int,
) -> None:
    writer = GGUFWriter(path, shape.arch)
    try:
        _add_metadata(writer, shape, name, weights)
        n_vocab = _n_vocab(shape, vocabulary)
        _add_vocabulary(writer, n_vocab)
        tensors = list(_tensors(shape, n_vocab))
        for tensor in tensors:
            size, dtype, kind = _stored(tensor, weights)
            writer.add_tensor_info(tensor.name, size, dtype, _n_bytes(tensor, weights), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        rng = np.random.default_rng(seed)
        for tensor in tensors:
            writer.write_tensor_data(_draw(rng, tensor, weights))
    finally:
        writer.close()


def _add_metadata(writer: GGUFWriter, shape: SyntheticShape, name: str, weights: Weights) -> None:
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[weights])
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_freq_base)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_vocabulary(writer: GGUFWriter, n_vocab: int) -> None:
    """Add a byte-level vocabulary: any text can be tokenised, a token a byte or nearly so."""
    # As GPT-2 spells bytes: printable ones are themselves, the others follow at 256.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    space = letters[ord(" ")]
    tokens = [*SPECIALS, *letters, f"{space}t"]
    tokens += [f"<unused {i}>" for i in range(n_vocab - len(tokens))]
    n_normal = len(tokens) - len(SPECIALS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [*[TokenType.CONTROL] * len(SPECIALS), *[TokenType.NORMAL] * n_normal],
    )
    writer.add_token_merges([f"{space} t"])  # llama.cpp refuses a vocabulary without any
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)


def _n_vocab(shape: SyntheticShape, vocabulary: Vocabulary) -> int:
    return shape.n_vocab if vocabulary == "full" else SMALL_VOCAB


def _tensors(shape: SyntheticShape, n_vocab: int) -> Iterator[_Tensor]:
    def matrix(name: str, n_out: int, n_in: int, scale: float = 1.0) -> _Tensor:
        # Inputs of size 1 give outputs of size `scale`.
        return _Tensor(f"{name}.weight", (n_out, n_in), scale / sqrt(n_in))

    def ones(name: str, n: int) -> _Tensor:
        return _Tensor(name, (n,))

    width, d = shape.n_embd, shape.head_dim
    q_width, kv_width = shape.n_head * d, shape.n_head_kv * d
    # A tied embedding is the output matrix too: logits keep a spread of about 1.
    yield matrix("token_embd", n_vocab, width, 1.0 if shape.tied_output else sqrt(width))
    yield ones("output_norm.weight", width)
    if not shape.tied_output:
        yield matrix("output", n_vocab, width)
    if shape.rope_factors:
        yield ones("rope_freqs.weight", d // 2)
    for layer in range(shape.n_layer):
        block = f"blk.{layer}."
        yield ones(f"{block}attn_norm.weight", width)
        # Q and K twice as large: logits spread enough for attention to have a shape.
        yield matrix(f"{block}attn_q", q_width, width, 2.0)
        yield matrix(f"{block}attn_k", kv_width, width, 2.0)
        yield matrix(f"{block}attn_v", kv_width, width)
        if shape.qkv_bias:
            for part, size in (("q", q_width), ("k", kv_width), ("v", kv_width)):
                yield ones(f"{block}attn_{part}.bias", size)
        if shape.qk_norm:
            yield ones(f"{block}attn_q_norm.weight", d)
            yield ones(f"{block}attn_k_norm.weight", d)
        yield matrix(f"{block}attn_output", width, q_width)
        yield ones(f"{block}ffn_norm.weight", width)
        yield matrix(f"{block}ffn_gate", shape.n_ff, width)
        yield matrix(f"{block}ffn_up", shape.n_ff, width)
        yield matrix(f"{block}ffn_down", width, shape.n_ff)


def _stored(
    tensor: _Tensor, weights: Weights
) -> tuple[tuple[int, ...], np.dtype[Any], GGMLQuantizationType]:
    """Return shape and type of the array that holds a tensor, and what GGUF calls that type."""
    if len(tensor.size) == 1:
        return tensor.size, np.dtype(np.float32), GGMLQuantizationType.F32
    if weights == "f16":
        return tensor.size, np.dtype(np.float16), GGMLQuantizationType.F16
    kind = GGMLQuantizationType[weights.upper()]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    n_out, n_in = tensor.size
    return (n_out, n_in // block * block_bytes), np.dtype(np.uint8), kind


def _n_bytes(tensor: _Tensor, weights: Weights) -> int:
    size, dtype, _ = _stored(tensor, weights)
    return prod(size) * dtype.itemsize


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


def _draw(rng: np.random.Generator, tensor: _Tensor, weights: Weights) -> npt.NDArray[Any]:
    size, dtype, kind = _stored(tensor, weights)
    if len(tensor.size) == 1:
        return np.ones(size, dtype)
    if weights == "f16":
        drawn = rng.standard_normal(size, np.float32)
        drawn *= np.float32(tensor.rms)
        return drawn.astype(dtype)
    # Random bytes are random integers of a block already: only its scale, a float16 in the first two bytes,
    # is put in place. Its sign stays random, which takes away the integers' mean of -0.5.
    data = rng.integers(0, 256, size, np.uint8)
    scales = data.reshape(-1, GGML_QUANT_SIZES[kind][1])[:, :2]
    low, high = np.array(tensor.rms / _RMS[weights], "<f2").tobytes()
    scales[:, 0] = low
    scales[:, 1] = (scales[:, 1] & 0x80) | high
    return data
