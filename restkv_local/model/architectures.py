"""Says which llama.cpp architectures keep a KV cache that can be evicted from, and why not others.

Each entry of ``VERIFIED`` was read in the pinned llama.cpp: causal attention without position bias,
plain or interleaved sliding-window layers, RoPE (or none) on consecutive or half-split pairs, no
learned sinks, and the attention output goes straight into W_O. What was not read is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeType = Literal["norm", "neox", "none", "unknown"]
SlidingWindow = Literal["never", "by_key", "always"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What the file's metadata does not say about one verified architecture.

    Attributes
    ----------
    rope : {"norm", "neox"}
        Pairs of consecutive values, or pairs half a head apart.
    full_rotary : bool
        llama.cpp asserts that RoPE covers the whole head.
    sliding_window : {"never", "by_key", "always"}
        Whether the sliding-window key is ignored, decides, or only sets the size.
    swa_period : int
        Default pattern: of ``swa_period`` layers the last one has full attention.
    n_swa : int
        Window when the key is absent; 0 where llama.cpp requires the key.
    nope_every : int
        Layers ``nope_every - 1``, ``2 * nope_every - 1``, … have no RoPE; 0 means none of them.
    nope_full_layers : bool
        Where windows are used, the full-attention layers have no RoPE.
    rope_switch : bool
        ``rope.scaling.finetuned = false`` turns RoPE off everywhere.
    attn_softcap : float
        Soft-cap on attention logits when the key is absent; 0 where the key is ignored.
    swa_n_layer : int
        Windows are used only with this layer count; 0 means any.
    """

    rope: RopeType
    full_rotary: bool = True
    sliding_window: SlidingWindow = "never"
    swa_period: int = 0
    n_swa: int = 0
    nope_every: int = 0
    nope_full_layers: bool = False
    rope_switch: bool = False
    attn_softcap: float = 0.0
    swa_n_layer: int = 0


_NORM = Architecture(rope="norm")
_NORM_PARTIAL = Architecture(rope="norm", full_rotary=False)
_NEOX = Architecture(rope="neox")
_NEOX_PARTIAL = Architecture(rope="neox", full_rotary=False)

VERIFIED: dict[str, Architecture] = {
    "apertus": _NEOX,
    "arcee": _NORM,
    "cohere2": Architecture(
        rope="norm",
        full_rotary=False,
        sliding_window="always",
        swa_period=4,
        nope_full_layers=True,
    ),
    "command-r": _NORM_PARTIAL,
    "ernie4_5": _NORM,
    "exaone": _NEOX,
    "exaone4": Architecture(
        rope="neox",
        sliding_window="always",
        swa_period=4,
        n_swa=4096,
        nope_full_layers=True,
        swa_n_layer=64,
    ),
    "gemma": _NEOX_PARTIAL,
    "gemma2": Architecture(
        rope="neox",
        full_rotary=False,
        sliding_window="always",
        swa_period=2,
        n_swa=4096,
        attn_softcap=50.0,
    ),
    "gemma3": Architecture(rope="neox", full_rotary=False, sliding_window="by_key", swa_period=6),
    "glm4": _NORM_PARTIAL,
    "gptneox": _NEOX_PARTIAL,
    "granite": Architecture(rope="norm", rope_switch=True),
    "granitemoe": _NORM,
    "internlm2": _NORM,
    "llama": _NORM,
    "mistral3": _NORM,
    "nemotron": _NEOX,
    "olmo": _NORM,
    "olmo2": Architecture(rope="neox", sliding_window="by_key", swa_period=4),
    "olmoe": _NEOX,
    "pangu-embedded": _NEOX,
    "phi2": _NEOX_PARTIAL,
    # llama.cpp switches Phi's sliding window off, whatever the key says.
    "phi3": _NEOX_PARTIAL,
    "phimoe": _NEOX_PARTIAL,
    "qwen": _NEOX_PARTIAL,
    "qwen2": _NEOX,
    "qwen2moe": _NEOX,
    "qwen3": _NEOX,
    "qwen3moe": _NEOX,
    "seed_oss": _NEOX,
    "smollm3": Architecture(rope="norm", nope_every=4),
    "stablelm": _NEOX_PARTIAL,
    "starcoder2": _NEOX,
}

_ALIBI = "ALiBi position bias"
_CHUNKED = "chunked sliding-window attention"
_DIFFUSION = "a diffusion model: attention is not causal"
_ENCODER = "an encoder: attention is not causal and there is no KV cache"
_GATED = "a gate or norm between attention and the output projection"
_HYBRID = "recurrent layers beside attention (hybrid)"
_LEARNED = "learned absolute positions instead of RoPE"
_MLA = "latent attention (MLA): the cache holds no per-head keys and values"
_MROPE = "multi-section RoPE (M-RoPE)"
_PER_LAYER = "head counts that differ between layers"
_RECURRENT = "recurrent: there is no KV cache to evict from"
_SHARED = "layers that share one KV cache"
_SINKS = "learned attention sinks"
_SWITCHED = "an output projection that is switched per token"

REFUSED: dict[str, str] = {
    "afmoe": _GATED,
    "arwkv7": _RECURRENT,
    "baichuan": _ALIBI,  # in the 13B; the 7B cannot be told apart by name
    "bailingmoe3": _HYBRID,
    "bert": _ENCODER,
    "bitnet": _GATED,
    "bloom": _ALIBI,
    "clip": _ENCODER,
    "deci": _PER_LAYER,
    "deepseek2": _MLA,
    "deepseek2-ocr": _MLA,
    "deepseek32": _MLA,
    "deepseek4": _MLA,
    "dots3note": _MLA,
    "dream": _DIFFUSION,
    "eurobert": _ENCODER,
    "falcon-h1": _HYBRID,
    "gemma-embedding": _ENCODER,
    "gemma3n": _SHARED,
    "gemma4": _SHARED,
    "gemma4-assistant": _SHARED,
    "glm-dsa": _MLA,
    "glm5-next": _HYBRID,
    "gpt-oss": _SINKS,
    "gpt2": _LEARNED,
    "gptj": "an architecture llama.cpp does not run",
    "granite_swa": _SINKS,
    "granitehybrid": _HYBRID,
    "graniteswitch": _SWITCHED,
    "hrm_text": _GATED,
    "hunyuan_vl": _MROPE,
    "hy_v4": _MLA,
    "jais": _ALIBI,
    "jamba": _HYBRID,
    "jina-bert-v2": _ENCODER,
    "jina-bert-v3": _ENCODER,
    "kimi-k3": _HYBRID,
    "kimi-linear": _HYBRID,
    "laguna": _GATED,
    "lfm2": _HYBRID,
    "lfm2moe": _HYBRID,
    "llada": _DIFFUSION,
    "llada-moe": _DIFFUSION,
    "llama-embed": _ENCODER,
    "llama4": _CHUNKED,
    "mamba": _RECURRENT,
    "mamba2": _RECURRENT,
    "mimo2": _SINKS,
    "minicpm3": _MLA,
    "minimax-01": _HYBRID,
    "mistral4": _MLA,
    "modern-bert": _ENCODER,
    "mpt": _ALIBI,
    "muse-glimmer": _GATED,
    "nemotron_h": _HYBRID,
    "nemotron_h_moe": _HYBRID,
    "neo-bert": _ENCODER,
    "nomic-bert": _ENCODER,
    "nomic-bert-moe": _ENCODER,
    "openelm": _PER_LAYER,
    "paddleocr": _MROPE,
    "plamo2": _HYBRID,
    "plm": _MLA,
    "qwen2vl": _MROPE,
    "qwen35": _HYBRID,
    "qwen35moe": _HYBRID,
    "qwen3next": _HYBRID,
    "qwen3tts": _MROPE,
    "qwen3vl": _MROPE,
    "qwen3vlmoe": _MROPE,
    "qwen4exp": _HYBRID,
    "refact": _ALIBI,
    "rnd1": _DIFFUSION,
    "rwkv6": _RECURRENT,
    "rwkv6qwen2": _RECURRENT,
    "rwkv7": _RECURRENT,
    "spark2_5": _GATED,
    "starcoder": _LEARNED,
    "step35": _GATED,
    "t5": "an encoder-decoder with relative position bias (T5)",
    "t5encoder": _ENCODER,
    "wavtokenizer-dec": _ENCODER,
}
