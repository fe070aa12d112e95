"""RESTKV_DISABLE=1 makes every hook inert: the library then behaves as released."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests import builders

pytestmark = pytest.mark.native

SCRIPT = """
import ctypes, os, sys
import numpy as np
if "stock" in sys.argv[3:]:
    import llama_cpp.llama_cpp as llama  # our loader refuses an unpatched library
else:
    from restkv_local.native import _library
    llama = _library.load()
arm = llama._lib.llama_restkv_arm if "pool" in sys.argv[3:] else None
model = llama.llama_model_load_from_file(os.fsencode(sys.argv[1]), llama.llama_model_default_params())
params = llama.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = 512, 128, 128
params.n_threads = params.n_threads_batch = 1
params.flash_attn_type, params.kv_unified = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED, True
params.type_k = params.type_v = int(sys.argv[4])
if arm:
    arm(32)
ctx = llama.llama_init_from_model(model, params)
tokens = np.random.default_rng(0).integers(10, 250, 220).tolist()
rows = []
for chunk in (tokens[:128], tokens[128:216], *[[t] for t in tokens[216:]]):
    array = (llama.llama_token * len(chunk))(*chunk)
    assert llama.llama_decode(ctx, llama.llama_batch_get_one(array, len(chunk))) == 0
    n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    rows.append(np.ctypeslib.as_array(llama.llama_get_logits_ith(ctx, -1), shape=(n_vocab,)).copy())
np.save(sys.argv[2], np.stack(rows))
"""


def logits_of(model, out, mode, type_kv, **environment):
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(out), mode, str(type_kv)],
        env=os.environ | environment,
        check=True,
        capture_output=True,
    )
    return np.load(out)


@pytest.mark.parametrize("type_kv", [1, 8, 2], ids=["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_pool_switched_off_and_plain_cache_give_the_same_logits(tmp_path, arch, type_kv):
    model = getattr(builders, arch)(head_dim=64).write(tmp_path / "m.gguf")
    plain = logits_of(model, tmp_path / "a.npy", "plain", type_kv)
    pool = logits_of(model, tmp_path / "b.npy", "pool", type_kv)
    off = logits_of(model, tmp_path / "c.npy", "pool", type_kv, RESTKV_DISABLE="1")
    np.testing.assert_array_equal(pool, plain)
    np.testing.assert_array_equal(off, plain)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("type_kv", [1, 8, 2], ids=["f16", "q8_0", "q4_0"])
def test_a_budget_that_holds_everything_equals_the_unpatched_build(tmp_path, type_kv):
    """The stock library comes from `make stock`: the same pin, compiled without the series."""
    from pathlib import Path

    from restkv_local.model.demo import resolve_model

    stock = Path(__file__).parents[2] / "build" / "stock" / "bin"
    if not stock.exists():
        pytest.fail(f"{stock} is missing: run make stock")
    model = resolve_model("demo")
    pool = logits_of(model, tmp_path / "a.npy", "pool", type_kv)
    environment = {"LLAMA_CPP_LIB_PATH": str(stock)}
    expected = logits_of(model, tmp_path / "b.npy", "stock", type_kv, **environment)
    np.testing.assert_array_equal(pool, expected)
