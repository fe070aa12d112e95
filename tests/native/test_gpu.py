"""What only a GPU shows. The other native tests run there too: make test-gpu."""

import numpy as np
import pytest

from restkv_local.native import NativeContext, library_info
from tests import builders
from tests.native.test_compaction import random_keep

pytestmark = [pytest.mark.native, pytest.mark.gpu]


def test_the_library_sees_a_gpu():
    assert any("CPU" not in device["name"] for device in library_info()["devices"])


@pytest.mark.parametrize("n_slots", [None, 1024], ids=["equal", "unequal"])
def test_a_gpu_goes_on_from_an_eviction_like_a_cpu(tmp_path, tokens, n_slots):
    """Head size 128: the sizes real models have, with the fast attention kernels."""
    path = builders.llama(n_head=8, n_head_kv=2, head_dim=128, n_embd=128).write(tmp_path / "m")
    found = []
    for n_gpu_layers in (0, -1):
        native = NativeContext(path, n_gpu_layers=n_gpu_layers)
        options = {"n_ring": 32, "n_ubatch": 64, "n_threads": 1, "type_k": "f16", "type_v": "f16"}
        native.open(512, n_slots=n_slots, **options)
        for seed in range(6):
            native.decode(tokens(60, seed=seed))
        shares = 200 if n_slots is None else np.array([[60, 340], [310, 90]])
        native.compact(random_keep(native, shares), None, native.position)
        logits = []
        for token in tokens(20, seed=9):
            native.decode([token])
            logits.append(native.logits().copy())
        native.close()
        found.append(np.stack(logits))
    error = np.sum((found[0] - found[1]) ** 2) / np.sum(found[0] ** 2)
    assert error < 1e-4
