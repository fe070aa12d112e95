"""Turns prompts into the tensors that presses of kvpress see, and the rows that they keep.

    python -m venv build/kvpress
    build/kvpress/bin/pip install -r benchmarks/kvpress/requirements.txt
    MODEL=$(.venv/bin/python -c "import restkv_local.model.demo as d; print(d.resolve_model('demo'))")
    build/kvpress/bin/python benchmarks/kvpress/capture.py $MODEL build/kvpress-capture
    .venv/bin/python benchmarks/kvpress/overlap.py build/kvpress-capture

torch and kvpress are in an environment of their own: nothing else here needs them. Each prompt is
read once, with transformers' eager attention in float32, on the CPU. Every press compresses the
same layer, and the model reads on with all rows, so that no press sees what another one did.
About 200 MB a prompt and 5 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kvpress import (
    AdaKVPress,
    BasePress,
    CriticalAdaKVPress,
    CriticalKVPress,
    ExpectedAttentionPress,
    KeyDiffPress,
    ObservedAttentionPress,
    PyramidKVPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from kvpress.utils import get_prerope_query_states
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.models.llama.modeling_llama import rotate_half
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).parents[1]))
from prose import document

RATIOS = (0.5, 0.75, 0.9)  # of the rows, removed
WORDS = (800, 950, 1100)  # one prompt each
EXPECTED = ExpectedAttentionPress(epsilon=1e-2)  # the epsilon of kvpress' own evaluation


def snapkv(ratio: float) -> SnapKVPress:
    """Return what most presses build on."""
    return SnapKVPress(ratio, window_size=32, kernel_size=5)


# PyramidKV with a window of 4: its last layer must not get less, or kvpress falls back to SnapKV.
PRESSES: dict[str, Callable[[float], BasePress]] = {
    "snapkv": snapkv,
    "tova": TOVAPress,
    "streamingllm": lambda ratio: StreamingLLMPress(ratio, n_sink=4),
    "pyramidkv": lambda ratio: PyramidKVPress(ratio, window_size=4, kernel_size=5, beta=20),
    "adakv": lambda ratio: AdaKVPress(snapkv(ratio), alpha_safeguard=0.2),
    "adakv without floor": lambda ratio: AdaKVPress(snapkv(ratio), alpha_safeguard=0.0),
    "criticalkv": lambda ratio: CriticalKVPress(snapkv(ratio)),
    "criticaladakv": lambda ratio: CriticalAdaKVPress(snapkv(ratio), alpha_safeguard=0.2),
    "criticaladakv without floor": lambda ratio: CriticalAdaKVPress(
        snapkv(ratio), alpha_safeguard=0.0
    ),
    "keydiff": KeyDiffPress,
    "expected-attention": lambda ratio: ExpectedAttentionPress(ratio, epsilon=EXPECTED.epsilon),
    "observed-attention": ObservedAttentionPress,
}


@dataclass
class Capture(BasePress):
    """A press that keeps every row, and writes down the tensors and what other presses would keep.

    Attributes
    ----------
    arrays : dict of list over layers of ndarray
        ``q``, ``k``, ``v`` after RoPE, of shape (heads, n, d); ``mean`` (n_head, d) and ``moment``
        (n_head, d, d) of the queries before RoPE; ``keep/PRESS/RATIO`` of shape (n_head_kv, n), bool.
    """

    arrays: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def compress(
        self,
        module: Any,
        hidden_states: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attentions: torch.Tensor,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Note down one layer."""
        plain = get_prerope_query_states(module, hidden_states)[0]  # (n_head, n, d)
        cos, sin = kwargs["position_embeddings"]
        rows = {
            "q": plain * cos[0] + rotate_half(plain) * sin[0],
            "k": keys[0],
            "v": values[0],
            "mean": plain.mean(dim=1),
            "moment": plain.mT @ plain / plain.shape[1],
        }
        for name, make in PRESSES.items():
            for ratio in RATIOS:
                inputs = (module, hidden_states, keys, values, attentions, kwargs)
                rows[f"keep/{name}/{ratio}"] = kept_rows(make(ratio), *inputs)
        for name, tensor in rows.items():
            self.arrays.setdefault(name, []).append(tensor.numpy())
        return keys, values


def kept_rows(
    press: BasePress, module: Any, hidden: torch.Tensor, keys: torch.Tensor, *inputs: Any
) -> torch.Tensor:
    """Return the rows that a press keeps of one layer: (n_head_kv, n), bool."""
    mask = torch.zeros(keys.shape[1:3], dtype=torch.bool)
    # Presses that mask instead of removing refuse eager attention, where their mask would not work.
    # Here only the mask itself is wanted.
    eager, module.config._attn_implementation = module.config._attn_implementation, "sdpa"
    module.masked_key_indices = None
    kept, _ = press.compress(module, hidden, keys, *inputs)
    module.config._attn_implementation = eager
    if module.masked_key_indices is not None:
        _, heads, rows = module.masked_key_indices
        mask[heads, rows] = True
        return ~mask
    for head in range(keys.shape[1]):
        # Keys differ by their rotation even where tokens repeat: a key names its row.
        row_of = {key.tobytes(): row for row, key in enumerate(keys[0, head].numpy())}
        assert len(row_of) == keys.shape[2]
        mask[head, [row_of[key.tobytes()] for key in kept[0, head].numpy()]] = True
    return mask


def main() -> None:
    """Read the prompts and write one file for each, and one for the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    options.out.mkdir(parents=True, exist_ok=True)

    load = {"pretrained_model_name_or_path": options.model.parent, "gguf_file": options.model.name}
    model = AutoModelForCausalLM.from_pretrained(
        **load, dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(**load)
    layers = model.model.layers
    n_head, d = model.config.num_attention_heads, model.config.head_dim
    w_o = [layer.self_attn.o_proj.weight.detach().mT.reshape(n_head, d, -1) for layer in layers]
    packages = ("kvpress", "transformers", "torch", "numpy")
    np.savez(
        options.out / "model.npz",
        w_o=np.stack(w_o),  # (n_layer, n_head, d, n_embd)
        versions=json.dumps({name: version(name) for name in packages}),
        model=options.model.name,
    )
    for index, n_words in enumerate(WORDS):
        started = time.perf_counter()
        needle = f"The registration number of the oak cabinet is {4815162 + index}."
        text = document(n_words, seed=index, needle=needle, depth=(index + 0.5) / len(WORDS))
        question = "What is the registration number of the oak cabinet?"
        tokens = tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{text}\n\n{question}"}],
            add_generation_prompt=True,
            return_tensors="pt",
        )["input_ids"]
        capture = Capture()
        with torch.no_grad(), capture(model):
            model.model(tokens, past_key_values=DynamicCache())
            attention = layers[0].self_attn
            # The mean rotation of what follows the prompt; applied to unit vectors it is the matrix.
            units, _ = EXPECTED.apply_avg_rope(attention, torch.eye(d), None, tokens.shape[1])
        arrays = {name: np.stack(per_layer) for name, per_layer in capture.arrays.items()}
        path = options.out / f"prompt-{index}.npz"
        arrays |= {"tokens": tokens[0].numpy(), "rotation": units.mT.numpy()}
        np.savez(path, allow_pickle=False, **arrays)
        seconds = time.perf_counter() - started
        print(f"{path}: {tokens.shape[1]} tokens, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
