import numpy as np
import pytest

from restkv_local.errors import NativeError
from restkv_local.native import NativeContext


@pytest.fixture
def on_gpu(n_gpu_layers):
    """Whether products round as a GPU's do."""
    return n_gpu_layers != 0


@pytest.fixture
def open_native(tmp_path, n_gpu_layers, on_gpu):
    """Write a tiny model, load it and open a context; all are freed after the test."""
    opened = []

    def open_(
        model, *, n_rows=256, n_slots=None, n_ring=32, n_ubatch=64, type_k="f16", type_v="f16",
        unturned=(),
    ):  # fmt: skip
        path = model if hasattr(model, "exists") else model.write(tmp_path / f"m{len(opened)}.gguf")
        native = NativeContext(path, n_gpu_layers=n_gpu_layers)
        opened.append(native)
        try:
            native.open(
                n_rows,
                n_slots=n_slots,
                n_ring=n_ring,
                n_ubatch=n_ubatch,
                n_threads=1,
                type_k=type_k,
                type_v=type_v,
                unturned=unturned,
            )
        except NativeError as error:
            if on_gpu and "use f16 K and V" in str(error):
                pytest.skip(str(error))  # Vulkan cannot, and says so (test_gpu.py)
            raise
        return native

    yield open_
    for native in opened:
        native.close()


@pytest.fixture
def tokens():
    """Return n tokens that are neither special nor the end of a generation."""
    return lambda n, seed=0: np.random.default_rng(seed).integers(10, 250, n).tolist()
