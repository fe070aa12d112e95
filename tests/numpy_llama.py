"""A llama forward pass of one token in NumPy, over cached rows of which some are masked per KV head."""

from __future__ import annotations

import numpy as np
from gguf import GGUFReader


class NumpyLlama:
    """A tiny model of ``builders.llama`` with F32 weights."""

    def __init__(self, path):
        reader = GGUFReader(path)
        self.weights = {tensor.name: np.array(tensor.data, np.float64) for tensor in reader.tensors}
        field = {name: value.contents() for name, value in reader.fields.items()}
        self.n_layer = field["llama.block_count"]
        self.n_head = field["llama.attention.head_count"]
        self.n_head_kv = field["llama.attention.head_count_kv"]
        self.n_rot = field["llama.rope.dimension_count"]
        self.eps = field["llama.attention.layer_norm_rms_epsilon"]
        self.base = field.get("llama.rope.freq_base", 10000.0)
        self.own = [[] for _ in range(self.n_layer)]  # K and V of the tokens stepped through

    def turn(self, x, shift):
        """Rotate consecutive pairs of (..., n, d) by ``shift`` (..., n) positions."""
        angles = np.asarray(shift)[..., None] * self.base ** (
            -np.arange(0, self.n_rot, 2) / self.n_rot
        )
        turned = np.array(x, np.float64)
        even, odd = turned[..., 0::2].copy(), turned[..., 1::2].copy()
        turned[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
        turned[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
        return turned

    def step(self, token, position, keys, values, keep):
        """Logits of one more token.

        Parameters
        ----------
        keys, values : list over layers of ndarray of shape (n_head_kv, n, d)
            Cached rows, keys rotated.
        keep : ndarray of shape (n_layer, n_head_kv, n), bool
            Rows that are visible. Tokens stepped through before always are.
        """
        w = self.weights
        x = w["token_embd.weight"][token]
        for i in range(self.n_layer):
            part = f"blk.{i}."
            h = self._norm(x, w[part + "attn_norm.weight"])
            q, k, v = ((w[f"{part}attn_{name}.weight"] @ h) for name in "qkv")
            q = self.turn(q.reshape(self.n_head, -1), position)
            k = self.turn(k.reshape(self.n_head_kv, -1), position)
            self.own[i].append((k, v.reshape(self.n_head_kv, -1)))
            out = [self._attend(q[h], i, h, keys, values, keep) for h in range(self.n_head)]
            x = x + w[part + "attn_output.weight"] @ np.concatenate(out)
            h = self._norm(x, w[part + "ffn_norm.weight"])
            gate = w[part + "ffn_gate.weight"] @ h
            x = x + w[part + "ffn_down.weight"] @ (
                gate / (1 + np.exp(-gate)) * (w[part + "ffn_up.weight"] @ h)
            )
        return w["output.weight"] @ self._norm(x, w["output_norm.weight"])

    def _attend(self, q, i, head, keys, values, keep):
        g = head // (self.n_head // self.n_head_kv)
        own_k, own_v = (np.stack([pair[j][g] for pair in self.own[i]]) for j in (0, 1))
        k = np.concatenate([keys[i][g], own_k])
        v = np.concatenate([values[i][g], own_v])
        visible = np.concatenate([keep[i, g], np.ones(len(own_k), bool)])
        logits = np.where(visible, k @ q / np.sqrt(q.size), -np.inf)
        attention = np.exp(logits - logits.max())
        return attention / attention.sum() @ v

    def _norm(self, x, weight):
        return x / np.sqrt(np.mean(x**2) + self.eps) * weight
