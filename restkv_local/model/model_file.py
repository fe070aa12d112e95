"""Turns a GGUF file into a ``ModelShape``, without loading weights, and says what may run on it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from restkv_local.control_characters import show_path
from restkv_local.errors import ConfigError, ModelError, UnsupportedModelError
from restkv_local.model.architectures import REFUSED, VERIFIED, Architecture, RopeType
from restkv_local.model.gguf_header import (
    Header,
    TypedValue,
    get_array,
    get_bool,
    get_float,
    get_int,
    get_str,
    read_header,
)

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS, asserted by llama.cpp
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS, asserted by llama.cpp
MAX_HEADS = 1 << 14
MAX_HEAD_DIM = 1 << 14
MAX_EMBD = 1 << 22

# KV type -> (values per block, bytes per block)
CACHE_TYPES: dict[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
}
POSITIONS = ("original", "compact")
# ggml types that hold indices or intermediate results, never a matrix to multiply with
_NOT_WEIGHTS = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")
# tokenizer.ggml.model of the verified architectures' files: SentencePiece and byte-level BPE
_TOKENIZERS = ("llama", "gpt2")
_NO_TOKENIZER = ("none", "no_vocab")
_WORD = 4  # bytes; the compaction graphs copy rows as 32-bit words
ROW_PAD = 256  # llama.cpp allocates and attends to rows in multiples of this

# general.file_type -> label; the quantisation mix of the file as its maker named it
_FILE_TYPES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What a model's header says about its attention and its cache.

    Attributes
    ----------
    path : Path
        The file, or the first part of a split model.
    arch, name : str
        ``general.architecture`` and ``general.name`` (the file's stem when absent).
    n_layer, n_head, n_head_kv, head_dim_k, head_dim_v, n_embd, n_vocab, n_ctx_train : int
        Counts; equal in all layers.
    rope_type : {"norm", "neox", "none", "unknown"}
        "unknown" for an architecture that is not verified.
    n_rot : int
        Values of a head that RoPE rotates.
    has_long_rope : bool
        Two tensors scale RoPE's frequencies and the context length chooses between them (long-rope).
    nope_layers : tuple of bool
        Layers without RoPE.
    softcap : float
        Soft-cap on attention logits, 0 for none.
    swa_layers : tuple of bool
        Layers with sliding-window attention; we evict in the others only.
    n_swa : int
        Window of those layers in tokens, 0 without.
    file_bytes : int
        Size of the file, all parts together.
    quantisation : str
        File type label, such as "Q4_K_M".
    unsupported : str or None
        Why no KV type and no positions can make this model run here.
    """

    path: Path
    arch: str
    name: str
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    rope_type: RopeType
    n_rot: int
    has_long_rope: bool
    nope_layers: tuple[bool, ...]
    softcap: float
    swa_layers: tuple[bool, ...]
    n_swa: int
    file_bytes: int
    quantisation: str
    unsupported: str | None

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Indices of the layers with full attention: the ones a budget applies to."""
        return tuple(i for i, swa in enumerate(self.swa_layers) if not swa)


def read_model(path: str | Path) -> ModelShape:
    """Read a model's shape from its header, all limits checked.

    Parameters
    ----------
    path : str or Path
        A GGUF file, or the first part of a split one.

    Returns
    -------
    ModelShape
        Also for models we cannot run: ``check_supported`` tells, ``unsupported`` says why.

    Raises
    ------
    ModelError
        If the file is no GGUF model that llama.cpp could load without aborting.
    UnsupportedModelError
        If the model has no shape to speak of (recurrent, head counts per layer).
    """
    return shape_from_header(read_header(path))


def shape_from_header(header: Header) -> ModelShape:
    """Shape of a model whose header is already read."""
    arch = _architecture(header)
    try:
        return _Reader(header, arch).shape()
    except UnsupportedModelError:
        raise
    except ModelError as error:
        # A missing key of a model we would refuse anyway: name the reason that helps.
        if arch in VERIFIED:
            raise
        raise UnsupportedModelError(f"{show_path(header.path)}: {_unverified(arch)}") from error


def check_supported(
    shape: ModelShape, *, type_k: str = "f16", positions: str = "auto", type_v: str = "f16"
) -> None:
    """Refuse a model or a combination we do not evict from.

    Parameters
    ----------
    shape : ModelShape
        The model.
    type_k, type_v : str
        KV types, keys of ``CACHE_TYPES``.
    positions : {"auto", "original", "compact"}
        "auto" passes if one of the two does.

    Raises
    ------
    UnsupportedModelError
        If no option would help, with the reason in one line.
    ConfigError
        If a KV type or ``positions`` is not a known name, or one that this model cannot have.
    """
    _cache_type(type_k)
    _cache_type(type_v)
    if positions not in ("auto", *POSITIONS):
        raise ConfigError(f"positions must be one of auto, original, compact; got {positions!r}")
    prefix = f"{shape.name} ({shape.arch}) cannot run here"
    if shape.unsupported is not None:
        raise UnsupportedModelError(f"{prefix}: {shape.unsupported}")
    for flag, kind, head_dim in (
        ("-ctk", type_k, shape.head_dim_k),
        ("-ctv", type_v, shape.head_dim_v),
    ):
        block = CACHE_TYPES[kind][0]
        if head_dim % block:
            raise ConfigError(
                f"{prefix} with {kind} rows: head_dim {head_dim} is not a multiple of {block}, "
                f"so rows cannot move as whole blocks; use {flag} f16"
            )
        if _row_bytes(head_dim, kind) % _WORD:
            raise ConfigError(
                f"{prefix} with {kind} rows: with head_dim {head_dim} they have {_row_bytes(head_dim, kind)} bytes,"
                f" and rows move as whole 32-bit words; use {flag} f16"
            )
    wanted = POSITIONS if positions == "auto" else (positions,)
    obstacles = [_position_obstacle(shape, type_k, choice) for choice in wanted]
    if all(obstacles):
        raise ConfigError(f"{prefix}: " + "; and ".join(filter(None, obstacles)))


def supported_positions(shape: ModelShape, *, type_k: str = "f16") -> tuple[str, ...]:
    """Which of "original" and "compact" this model allows with keys of ``type_k``."""
    _cache_type(type_k)
    if shape.unsupported is not None:
        return ()
    return tuple(p for p in POSITIONS if _position_obstacle(shape, type_k, p) is None)


def _position_obstacle(shape: ModelShape, type_k: str, positions: str) -> str | None:
    if positions == "original":
        if shape.has_long_rope:
            return (
                "original positions need one RoPE for the whole text, but long-rope factors "
                "change with the context length; use --positions compact"
            )
        return None
    if shape.rope_type == "none":
        return (
            "compact positions re-rotate keys, but this model has no RoPE; use --positions original"
        )
    if any(shape.swa_layers):
        return (
            "compact positions would break the sliding-window layers, which keep the true ones; "
            "use --positions original"
        )
    if any(shape.nope_layers):
        return (
            "compact positions would rotate the keys of layers without RoPE; "
            "use --positions original"
        )
    if type_k not in ("f32", "f16"):
        return (
            f"compact positions re-rotate keys at each eviction and the rounding of {type_k} keys "
            "adds up; use -ctk f16 or --positions original"
        )
    return None


# KV bytes


def kv_row_bytes(shape: ModelShape, type_k: str = "f16", type_v: str = "f16") -> int:
    """Bytes of one row: K and V of one token in one layer and KV head."""
    return _row_bytes(shape.head_dim_k, type_k) + _row_bytes(shape.head_dim_v, type_v)


def kv_bytes_per_token(shape: ModelShape, type_k: str = "f16", type_v: str = "f16") -> int:
    """Bytes of one token in all full-attention layers and KV heads.

    Sliding-window layers are left out: their cache has a fixed size, see ``swa_cache_bytes``.
    """
    return len(shape.full_layers) * shape.n_head_kv * kv_row_bytes(shape, type_k, type_v)


def pad_rows(n_rows: int) -> int:
    """Rows that llama.cpp allocates when asked for ``n_rows``."""
    return -(-n_rows // ROW_PAD) * ROW_PAD


def swa_cache_bytes(
    shape: ModelShape, n_ubatch: int, type_k: str = "f16", type_v: str = "f16"
) -> int:
    """Bytes of the sliding-window layers' own cache, whatever the budget; 0 without them."""
    n_swa_layer = shape.n_layer - len(shape.full_layers)
    cells = pad_rows(shape.n_swa + n_ubatch)
    return n_swa_layer * shape.n_head_kv * cells * kv_row_bytes(shape, type_k, type_v)


def scoring_bytes(shape: ModelShape, n_ring: int, n_rows: int) -> int:
    """Bytes of what scoring keeps, in float32: the newest ``n_ring`` queries, factors, norms of ``n_rows`` rows."""
    values = n_ring * shape.head_dim_k + shape.head_dim_v**2 + n_rows
    return len(shape.full_layers) * shape.n_head * values * 4


def _row_bytes(head_dim: int, kind: str) -> int:
    block, block_bytes = _cache_type(kind)
    # ceil: llama.cpp refuses a partial block, and `check_supported` says so before.
    return -(-head_dim // block) * block_bytes


def _cache_type(kind: str) -> tuple[int, int]:
    if kind not in CACHE_TYPES:
        raise ConfigError(f"KV type must be one of {', '.join(CACHE_TYPES)}; got {kind!r}")
    return CACHE_TYPES[kind]


# from metadata to shape


def _architecture(header: Header) -> str:
    shown = show_path(header.path)
    arch = get_str(header.metadata, "general.architecture")
    if not arch:
        raise ModelError(
            f"{shown} holds tensors but no model (general.architecture is absent); "
            "give a GGUF converted from a language model"
        )
    kind = get_str(header.metadata, "general.type")
    if kind not in (None, "model"):
        raise ModelError(f"{shown} is a GGUF of type {kind!r}; give a language model")
    if not header.tensors:
        raise ModelError(f"{shown} holds no tensors (a vocabulary only); give a whole model")
    return arch


def _unverified(arch: str) -> str:
    if arch in REFUSED:
        return f"architecture {arch!r} is not supported: {REFUSED[arch]}"
    return (
        f"architecture {arch!r} is not verified: nobody has checked that its attention is causal, "
        "unbiased and goes straight into W_O"
    )


class _Reader:
    """Reads one architecture's keys; each getter checks what it returns."""

    def __init__(self, header: Header, arch: str) -> None:
        self._header = header
        self._meta: Mapping[str, TypedValue] = header.metadata
        self._arch = arch
        self._facts = VERIFIED.get(arch)

    def shape(self) -> ModelShape:
        n_layer = self._int("block_count", low=1, high=MAX_LAYERS)
        n_embd = self._int("embedding_length", low=1, high=MAX_EMBD)
        n_head = self._per_layer("attention.head_count", n_layer, None)
        n_head_kv = self._per_layer("attention.head_count_kv", n_layer, n_head)
        if n_head % n_head_kv:
            raise self._error(
                f"{n_head} query heads cannot share {n_head_kv} KV heads; "
                "head_count must be a multiple of head_count_kv"
            )
        default_dim = max(n_embd // n_head, 1)
        head_dim_k = self._int("attention.key_length", default_dim, low=1, high=MAX_HEAD_DIM)
        head_dim_v = self._int("attention.value_length", default_dim, low=1, high=MAX_HEAD_DIM)
        n_rot = self._int("rope.dimension_count", head_dim_k, low=0, high=MAX_HEAD_DIM)
        swa_layers, n_swa = self._sliding_window(n_layer)
        nope_layers = self._nope_layers(n_layer, swa_layers)
        tensors = self._header.tensors
        rope_type: RopeType = "unknown" if self._facts is None else self._facts.rope
        if all(nope_layers):
            rope_type = "none"
        unsupported = self._unsupported(n_layer, head_dim_k, head_dim_v, swa_layers)
        if unsupported is None:
            self._check_llama_cpp_asserts(head_dim_k, n_rot)
            self._check_windows(swa_layers, n_swa, n_rot)
            self._check_tensors(n_head * head_dim_k, n_head_kv * head_dim_k)
        return ModelShape(
            path=self._header.path,
            arch=self._arch,
            name=self._name(),
            n_layer=n_layer,
            n_head=n_head,
            n_head_kv=n_head_kv,
            head_dim_k=head_dim_k,
            head_dim_v=head_dim_v,
            n_embd=n_embd,
            n_vocab=self._n_vocab(),
            n_ctx_train=self._int("context_length", low=1, high=1 << 31),
            rope_type=rope_type,
            n_rot=n_rot,
            has_long_rope="rope_factors_long.weight" in tensors,
            nope_layers=nope_layers,
            softcap=self._softcap(),
            swa_layers=swa_layers,
            n_swa=n_swa,
            file_bytes=self._header.file_bytes,
            quantisation=self._quantisation(),
            unsupported=unsupported,
        )

    # getters

    def _key(self, key: str) -> str:
        return f"{self._arch}.{key}"

    def _int(self, key: str, default: int | None = None, *, low: int, high: int) -> int:
        full = self._key(key)
        value = get_int(self._meta, full)
        if value is None:
            if full in self._meta:
                raise self._error(f"{full} is a {self._meta[full].type}, it must be an integer")
            if default is None:
                raise self._error(f"{full} is missing, so this is not a whole model")
            return default
        if not low <= value <= high:
            raise self._error(f"{full} is {value}, it must be in [{low}, {high}]")
        return value

    def _per_layer(self, key: str, n_layer: int, default: int | None) -> int:
        """One head count for all layers; llama.cpp also takes one per layer."""
        array = get_array(self._meta, self._key(key))
        if array is None:
            return self._int(key, default, low=1, high=MAX_HEADS)
        if array.count != n_layer or not array.items or array.item_type not in ("int32", "uint32"):
            raise self._error(
                f"{self._key(key)} has {array.count} {array.item_type} items, "
                f"it must have one integer for each of {n_layer} layers"
            )
        if len(set(array.items)) > 1:
            raise UnsupportedModelError(
                f"{show_path(self._header.path)}: {self._key(key)} differs between layers; "
                "only equal head counts are supported"
            )
        value = int(array.items[0])
        if not 1 <= value <= MAX_HEADS:
            raise self._error(f"{self._key(key)} is {value}, it must be in [1, {MAX_HEADS}]")
        return value

    def _error(self, problem: str) -> ModelError:
        return ModelError(f"{show_path(self._header.path)}: {problem}")

    # parts of the shape

    def _name(self) -> str:
        name = get_str(self._meta, "general.name")
        if name and name.isprintable():
            return name
        return self._header.path.name.removesuffix(".gguf")

    def _n_vocab(self) -> int:
        embedding = self._header.tensors.get("token_embd.weight")
        if embedding is not None and len(embedding.ne) >= 2:
            return embedding.ne[1]
        tokens = get_array(self._meta, "tokenizer.ggml.tokens")
        return tokens.count if tokens is not None else 0

    def _softcap(self) -> float:
        if self._facts is None or not self._facts.attn_softcap:
            return 0.0
        value = get_float(self._meta, self._key("attn_logit_softcapping"))
        if value is None:
            return self._facts.attn_softcap
        if not math.isfinite(value) or value < 0:
            raise self._error(f"attn_logit_softcapping is {value}, it must be a positive number")
        return value

    def _quantisation(self) -> str:
        label = _FILE_TYPES.get(get_int(self._meta, "general.file_type") or 0)
        if label is not None and "general.file_type" in self._meta:
            return label
        # Not said: the most frequent type of the matrices, as llama.cpp guesses.
        counts = Counter(t.type_name for t in self._header.tensors.values() if len(t.ne) > 1)
        return counts.most_common(1)[0][0] if counts else "unknown"

    def _sliding_window(self, n_layer: int) -> tuple[tuple[bool, ...], int]:
        none = (False,) * n_layer, 0
        facts = self._facts
        if facts is None or facts.sliding_window == "never":
            return none
        if facts.swa_n_layer and n_layer != facts.swa_n_layer:
            return none
        default = facts.n_swa if facts.sliding_window == "always" else 0
        n_swa = self._int("attention.sliding_window", default, low=0, high=1 << 31)
        if n_swa == 0:
            if facts.sliding_window == "by_key":
                return none
            raise self._error(
                f"{self._key('attention.sliding_window')} is 0 or missing, {self._arch} needs it"
            )
        return self._swa_pattern(n_layer, facts), n_swa

    def _swa_pattern(self, n_layer: int, facts: Architecture) -> tuple[bool, ...]:
        key = "attention.sliding_window_pattern"
        array = get_array(self._meta, self._key(key))
        if array is None:
            period = self._int(key, facts.swa_period, low=0, high=MAX_LAYERS)
            return tuple(period == 0 or i % period < period - 1 for i in range(n_layer))
        if (
            array.items is None
            or not n_layer <= array.count <= MAX_LAYERS
            or array.item_type not in ("bool", "int32", "uint32")
        ):
            raise self._error(
                f"{self._key(key)} has {array.count} {array.item_type} items, "
                f"it must have one flag for each of {n_layer} layers"
            )
        return tuple(bool(flag) for flag in array.items[:n_layer])

    def _nope_layers(self, n_layer: int, swa_layers: tuple[bool, ...]) -> tuple[bool, ...]:
        facts = self._facts
        if facts is None:
            return (False,) * n_layer
        if facts.rope_switch and get_bool(self._meta, self._key("rope.scaling.finetuned")) is False:
            return (True,) * n_layer
        if facts.nope_full_layers and any(swa_layers):
            return tuple(not swa for swa in swa_layers)
        every = facts.nope_every
        return tuple(bool(every) and (i + 1) % every == 0 for i in range(n_layer))

    # what cannot run

    def _unsupported(
        self, n_layer: int, head_dim_k: int, head_dim_v: int, swa_layers: tuple[bool, ...]
    ) -> str | None:
        """First reason against this model; properties first, since they say more than a name."""
        meta, key = self._meta, self._key
        sections = get_array(meta, key("rope.dimension_sections"))
        prefix = key("ssm.")
        tensors = self._header.tensors
        checks: tuple[tuple[bool, str], ...] = (
            (get_bool(meta, key("attention.causal")) is False, "its attention is not causal"),
            (bool(get_int(meta, key("attention.kv_lora_rank"))), REFUSED["deepseek2"]),
            (any(k.startswith(prefix) for k in meta), REFUSED["jamba"]),
            (bool(get_float(meta, key("attention.max_alibi_bias"))), REFUSED["mpt"]),
            (bool(get_int(meta, key("attention.shared_kv_layers"))), REFUSED["gemma3n"]),
            (sections is not None and any(sections.items or (1,)), REFUSED["qwen2vl"]),
            (any(name.endswith("attn_sinks.weight") for name in tensors), REFUSED["gpt-oss"]),
            (any(name.endswith("attn_gate.weight") for name in tensors), REFUSED["afmoe"]),
        )
        for found, reason in checks:
            if found:
                return reason
        if self._facts is None:
            return _unverified(self._arch)
        if get_int(meta, key("nextn_predict_layers")):
            return "layers for multi-token prediction (nextn) are not verified"
        if (get_int(meta, key("expert_group_count")) or 0) > 1:
            return "experts in groups are not verified"
        if head_dim_k != head_dim_v:
            return f"keys of {head_dim_k} and values of {head_dim_v} per head; they must be equal"
        for name, dim in (("key", head_dim_k), ("value", head_dim_v)):
            if (get_int(meta, key(f"attention.{name}_length_swa")) or dim) != dim:
                return "sliding-window layers with another head size"
        tokenizer = get_str(meta, "tokenizer.ggml.model")
        if tokenizer not in (None, *_NO_TOKENIZER, *_TOKENIZERS):
            return (
                f"the tokenizer {tokenizer!r} is not verified, only {' and '.join(_TOKENIZERS)} are"
            )
        if all(swa_layers):
            return f"all {n_layer} layers use sliding-window attention: there is nothing to evict"
        return None

    def _check_llama_cpp_asserts(self, head_dim_k: int, n_rot: int) -> None:
        """Metadata for which llama.cpp would abort the process instead of returning an error."""
        assert self._facts is not None
        if n_rot == 0 or n_rot % 2 or n_rot > head_dim_k:
            raise self._error(
                f"rope.dimension_count is {n_rot}, it must be even and at most {head_dim_k}"
            )
        if self._facts.full_rotary and n_rot != head_dim_k:
            raise self._error(
                f"rope.dimension_count is {n_rot}, {self._arch} needs the head's {head_dim_k}"
            )
        scaling = get_str(self._meta, self._key("rope.scaling.type"))
        if scaling not in (None, "none", "linear", "yarn", "longrope"):
            raise self._error(f"rope.scaling.type is {scaling!r}, llama.cpp does not know it")
        n_expert = self._int("expert_count", 0, low=0, high=MAX_EXPERTS)
        used = self._int("expert_used_count", 0, low=0, high=MAX_EXPERTS)
        if (n_expert == 0) != (used == 0) or used > n_expert:
            raise self._error(
                f"expert_used_count is {used} of {n_expert} experts; it must be in [1, {n_expert}]"
            )
        groups = self._int("expert_group_count", 0, low=0, high=MAX_EXPERTS)
        if groups and groups >= n_expert:
            raise self._error(
                f"expert_group_count is {groups} of {n_expert} experts; it must be 0 or below that"
            )
        for name in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
            epsilon = get_float(self._meta, self._key(f"attention.{name}"))
            if epsilon is not None and not 0 <= epsilon < 1:
                raise self._error(f"attention.{name} is {epsilon}, it must be in [0, 1)")
        tokenizer = get_str(self._meta, "tokenizer.ggml.model")
        if tokenizer in (None, *_NO_TOKENIZER) or not self._n_vocab():
            raise self._error("the file has no vocabulary, so no text can be read with it")
        if tokenizer == "llama" and (missing := self._header.unspelled):
            raise self._error(
                f"the vocabulary has no token for {len(missing)} of 256 bytes, 0x{missing[0]:02X} among them,"
                " so not every text can be read with it; convert the model again"
            )

    def _check_windows(self, swa_layers: tuple[bool, ...], n_swa: int, n_rot: int) -> None:
        """Metadata of window layers that llama.cpp asserts, or takes for the other layers too."""
        if n_swa == 0:
            return
        if not any(swa_layers):
            raise self._error(
                f"a window of {n_swa} tokens is used in none of {len(swa_layers)} layers;"
                " attention.sliding_window_pattern must name one"
            )
        # The graphs rotate all layers as the first one, which mostly has a window.
        n_rot_swa = self._int("rope.dimension_count_swa", n_rot, low=0, high=1 << 32)
        if n_rot_swa != n_rot:
            raise self._error(
                f"rope.dimension_count_swa is {n_rot_swa}, it must be the {n_rot} of rope.dimension_count"
            )

    def _check_tensors(self, q_width: int, kv_width: int) -> None:
        """Tensor types and widths that llama.cpp asserts while it builds or runs the graph."""
        widths = {
            "attn_q.weight": (1, q_width),
            "attn_k.weight": (1, kv_width),
            "attn_v.weight": (1, kv_width),
            "attn_qkv.weight": (1, q_width + 2 * kv_width),
            "attn_output.weight": (0, q_width),
        }
        for name, tensor in self._header.tensors.items():
            vector = len(tensor.ne) == 1 or name.endswith(("_norm.weight", ".bias"))
            if vector and tensor.type_name != "F32":
                raise self._error(f"{name} is stored as {tensor.type_name}, it must be F32")
            if tensor.type_name in _NOT_WEIGHTS:
                raise self._error(f"{name} is stored as {tensor.type_name}, not as weights")
            axis, width = widths.get(name.split(".", 2)[-1], (0, 0))
            if width and (len(tensor.ne) != 2 or tensor.ne[axis] != width):
                raise self._error(
                    f"{name} has shape {list(tensor.ne)}, the head counts ask for {width} values"
                )
