"""Make restkv.npz: what the released code of ReST-KV computes on seeded random tensors.

python tests/golden/make_restkv.py REST_KV/restkv/restkv_utils.py      (needs torch and transformers)
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch

N_HEAD, N_KV, N_OBS, HEAD_DIM, N_EMBD, BUDGET = 3, 160, 16, 8, 20, 48

# name: arguments of the released class; scales below the length so that kernel and shift really move
CASES = {
    "after": {"metric_mode": "after", "pooling": "adaptive", "scale": 2000, "kernel_size": 21},
    "after_drift": {"metric_mode": "after", "pooling": "adaptive", "scale": 5, "kernel_size": 5},
    "after_tau": {"metric_mode": "after", "pooling": "adaptive", "scale": 2000, "tau": 2.0},
    "before": {"metric_mode": "before", "pooling": "avgpool", "kernel_size": 1},
    "before_without_wo": {"metric_mode": "before", "pooling": "none", "use_wo": False},
}


def main(path: Path) -> None:
    """Run every case and write inputs and smoothed scores beside this file."""
    spec = importlib.util.spec_from_file_location("released", path)
    assert spec is not None
    assert spec.loader is not None
    released = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(released)

    rng = np.random.default_rng(0)
    tensors = {
        "q": 2 * rng.standard_normal((N_HEAD, N_KV, HEAD_DIM)),
        "k": rng.standard_normal((N_HEAD, N_KV, HEAD_DIM)),
        "v": rng.standard_normal((N_HEAD, N_KV, HEAD_DIM)),
        "w_o": rng.standard_normal((N_EMBD, N_HEAD * HEAD_DIM)),
    }
    # The older half of the window looks at the text's end, the newer half at its start.
    slope = np.linspace(-1, 1, N_KV)[:, None]
    tensors["k"][1, :, :1] += 3 * slope
    tensors["q"][1, -N_OBS:, 0] = np.where(np.arange(N_OBS) < N_OBS // 2, 4, -4)
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}

    scores = {}
    for name, changes in CASES.items():
        settings = {"use_wo": True, "use_ema": True, "alpha": 0.3, "kernel_size": 5, "tau": 1.0}
        cluster = released.RestKVCluster(
            window_size=N_OBS, max_capacity_prompt=BUDGET, **(settings | changes)
        )
        seen: list[np.ndarray] = []
        topk = torch.Tensor.topk

        def capture(self, *args, seen=seen, topk=topk, **kwargs):  # type: ignore[no-untyped-def]
            seen.append(self[0].numpy().copy())
            return topk(self, *args, **kwargs)

        torch.Tensor.topk = capture  # type: ignore[method-assign]
        try:
            q, k, v, w_o = (torch.from_numpy(tensors[name]) for name in ("q", "k", "v", "w_o"))
            cluster.update_kv(k[None], q[None], v[None], None, 1, w_o)
        finally:
            torch.Tensor.topk = topk  # type: ignore[method-assign]
        (scores[f"scores_{name}"],) = seen
    out = Path(__file__).with_name("restkv.npz")
    np.savez_compressed(
        out, q=tensors["q"][:, -N_OBS:], **{n: tensors[n] for n in ("k", "v", "w_o")}, **scores
    )
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
