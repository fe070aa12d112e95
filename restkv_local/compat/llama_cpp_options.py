"""Reads the constructor options of llama_cpp.Llama: what they mean here, or why they cannot be had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from restkv_local.config import DEFAULTS
from restkv_local.errors import ConfigError

# The few values of enum ggml_type that the pool takes.
_GGML_TYPES: Final = {1: "f16", 8: "q8_0", 2: "q4_0"}

_ANY_SEED: Final = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: llama.cpp draws one

_LORA: Final = "merge the adapter into the GGUF first"
_ROPE: Final = "RoPE is read from the GGUF, and compact positions stay within the trained length"
_ONE_GPU_SETUP: Final = "llama.cpp's own split of the layers is used"
_LOADING: Final = "weights are mapped from the file, not locked"

# option: (values that ask for what happens anyway, why there are no others)
_FIXED: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "split_mode": ((1,), _ONE_GPU_SETUP),
    "main_gpu": ((0,), _ONE_GPU_SETUP),
    "tensor_split": ((None,), _ONE_GPU_SETUP),
    "vocab_only": ((False,), "the model is always loaded whole"),
    "use_mmap": ((True,), _LOADING),
    "use_mlock": ((False,), _LOADING),
    "kv_overrides": ((None,), "the GGUF is taken as it is; edit it with gguf_set_metadata"),
    "rope_scaling_type": ((None, -1), _ROPE),
    "pooling_type": ((-1,), "there are no embeddings here"),
    "attention_type": ((-1,), "attention is causal: other models are refused"),
    "rope_freq_base": ((0,), _ROPE),
    "rope_freq_scale": ((0,), _ROPE),
    "yarn_ext_factor": ((-1,), _ROPE),
    "yarn_attn_factor": ((1,), _ROPE),
    "yarn_beta_fast": ((32,), _ROPE),
    "yarn_beta_slow": ((1,), _ROPE),
    "yarn_orig_ctx": ((0,), _ROPE),
    "logits_all": (
        (False,),
        "logprobs= of an answer need no logits_all; logits of the prompt are not kept",
    ),
    "embedding": ((False,), "there are no embeddings here"),
    "offload_kqv": ((True,), "rows live on the device of their layer"),
    "flash_attn": ((True,), "rows are scored beside flash attention, which is always on"),
    "op_offload": ((None, True), "llama.cpp decides"),
    "swa_full": ((None, False), "window layers keep their window"),
    "no_perf": ((True, False), "times are counted here, not by llama.cpp"),
    "lora_base": ((None,), _LORA),
    "lora_scale": ((1,), _LORA),
    "lora_path": ((None,), _LORA),
    "numa": ((False, 0), "set it for the process, with numactl"),
    "chat_format": ((None,), "chat uses the template in the GGUF"),
    "chat_handler": ((None,), "chat uses the template in the GGUF"),
    "draft_model": ((None,), "there is no speculative decoding here"),
    "tokenizer": ((None,), "the tokenizer in the GGUF is used"),
    "spm_infill": ((False,), "there is no infill here"),
}


def read_llama_cpp_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options under the names of :class:`~restkv_local.config.Config`; unknown ones stay.

    ``n_batch`` bounds ``n_ubatch``, as in llama.cpp. ``type_k`` and ``type_v`` may be ggml's numbers.

    Raises
    ------
    ConfigError
        If an option asks for what cannot be had here.
    """
    read = dict(options)
    if "n_ctx" in read:
        raise ConfigError(
            "n_ctx is not an option here: the text may be any length, budget= says how many rows stay"
        )
    for name in _FIXED.keys() & read.keys():
        values, reason = _FIXED[name]
        value = read.pop(name)
        # An array would answer with an array.
        if not any(value is one or np.array_equal(value, one) for one in values):
            raise ConfigError(f"{name}={value!r} cannot be had here: {reason}; leave it out")
    if read.get("seed") == _ANY_SEED:
        read["seed"] = -1
    if read.get("n_threads", 0) is None:
        del read["n_threads"]
    n_threads_batch = read.pop("n_threads_batch", None)
    if n_threads_batch not in (None, read.get("n_threads", DEFAULTS.n_threads)):
        raise ConfigError(
            f"n_threads_batch={n_threads_batch!r} cannot be had here: prompt and answer use n_threads=;"
            " leave it out"
        )
    if type(read.get("n_batch", 1)) is not int:
        raise ConfigError(f"n_batch must be of type int; got n_batch={read['n_batch']!r}")
    if "n_batch" in read:
        read["n_ubatch"] = min(read.pop("n_batch"), read.get("n_ubatch", DEFAULTS.n_ubatch))
    for name in ("type_k", "type_v"):
        if name in read:
            value = read[name]
            # Another number stays: the config refuses it and names the types there are.
            read[name] = (
                getattr(DEFAULTS, name)
                if value is None
                else (_GGML_TYPES.get(value, value) if isinstance(value, int) else value)
            )
    return read
