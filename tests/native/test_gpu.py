"""What only a GPU shows. The other native tests run there too: make test-gpu."""

import numpy as np
import pytest

from restkv_local.errors import NativeError
from restkv_local.native import NativeContext, library_info
from tests import builders
from tests.native.test_compaction import random_keep

pytestmark = [pytest.mark.native, pytest.mark.gpu]


def test_the_library_sees_a_gpu():
    assert any("CPU" not in device["name"] for device in library_info()["devices"])


@pytest.mark.parametrize("n_gpu_layers", [1, -1], ids=["one-layer", "all-layers"])
@pytest.mark.parametrize("n_slots", [None, 1024], ids=["equal", "unequal"])
def test_a_gpu_goes_on_from_an_eviction_like_a_cpu(tmp_path, tokens, n_slots, n_gpu_layers):
    """Head size 128: the sizes real models have, with the fast attention kernels.

    A layer on the CPU attends there, though the GPU multiplies its large batches: its rows are not sent over.
    """
    path = builders.llama(n_head=8, n_head_kv=2, head_dim=128, n_embd=128).write(tmp_path / "m")
    found = []
    for n_layers in (0, n_gpu_layers):
        native = NativeContext(path, n_gpu_layers=n_layers)
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


def test_rows_that_a_device_cannot_begin_to_read_at_are_refused(tmp_path):
    """Vulkan binds memory at steps: rows of 68 bytes that begin anywhere would end the process."""
    if not any(device["name"].startswith("Vulkan") for device in library_info()["devices"]):
        pytest.skip("not a Vulkan device")
    native = NativeContext(builders.llama(head_dim=64).write(tmp_path / "m"), n_gpu_layers=-1)
    options = {"n_ring": 32, "n_ubatch": 64, "n_threads": 1, "type_k": "q8_0", "type_v": "q8_0"}
    with pytest.raises(NativeError, match="use f16 K and V"):
        native.open(512, n_slots=1024, **options)
    native.open(512, **options)
    native.close()
