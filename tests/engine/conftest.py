import numpy as np
import pytest

from restkv_local import Llama


@pytest.fixture
def open_llama(tmp_path, n_gpu_layers):
    """Write a tiny model and open it with small, fast settings; freed after the test."""
    opened = []

    def open_(model, **options):
        path = model if hasattr(model, "exists") else model.write(tmp_path / f"m{len(opened)}.gguf")
        small = {
            "budget": 64, "n_recent": 8, "n_obs": 8, "n_guide": 16, "n_ubatch": 64,
            "kernel": 5, "temp": 0.0, "n_predict": 16, "seed": 1, "n_threads": 1,
            "n_gpu_layers": n_gpu_layers,
        }  # fmt: skip
        llama = Llama(path, **(small | options))
        opened.append(llama)
        return llama

    yield open_
    for llama in opened:
        llama.close()


@pytest.fixture
def tokens():
    """Return n tokens that are neither special nor the end of a generation."""
    return lambda n, seed=0: np.random.default_rng(seed).integers(10, 250, n).tolist()
