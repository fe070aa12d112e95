"""Scoring by ggml's operations, as on a device other than a CPU, against the same oracle."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import builders

pytestmark = pytest.mark.native

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import numpy as np
from restkv_local.native import NativeContext, _bindings
path, out = sys.argv[1:]
rng = np.random.default_rng(0)
native = NativeContext(path)
native.open(256, n_slots=512, n_ring=32, n_ubatch=64, n_threads=2, type_k="f16", type_v="f16")
for i, layer in enumerate(native.layers):
    shape = layer.n_head, layer.head_dim_v, layer.head_dim_v
    native.set_factors(i, rng.standard_normal(shape).astype(np.float32))
for n in (64, 50):
    native.decode(rng.integers(10, 250, n).tolist())
flags = _bindings.AGGREGATE | _bindings.ROWS["max"]
attention, metric, _ = native.score(flags=flags, weights=np.full((1, 30), 1 / 30, np.float32))
np.save(out, np.concatenate([np.stack(attention).ravel(), np.stack(metric).ravel()]))
"""


def score(model, out, **environment):
    command = [sys.executable, "-c", SCRIPT, str(model), str(out)]
    subprocess.run(command, env=os.environ | environment, check=True)
    return np.load(out)


@pytest.mark.skipif(sys.platform == "win32", reason="MSVC builds nothing that could be switched")
def test_the_switch_takes_other_operations(tmp_path):
    """Two exponentials of float32 never agree in every last bit: were they the same, nothing had been switched."""
    model = builders.llama(n_head=6, n_head_kv=2, head_dim=64).write(tmp_path / "m.gguf")
    ours = score(model, tmp_path / "a.npy")
    theirs = score(model, tmp_path / "b.npy", RESTKV_VECTORS="0")
    assert (ours != theirs).any()
    # Keys meet queries in halves there.
    np.testing.assert_allclose(ours, theirs, rtol=5e-3, atol=1e-5)


def test_contractions_equal_numpy():
    """Among them those over heads that hold different numbers of rows, which need a mask for each head there."""
    files = ["test_contractions.py", "test_unequal_segments.py"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "numpy or attention",
    ]
    done = subprocess.run(
        [*command, *(str(Path(__file__).with_name(name)) for name in files)],
        cwd=ROOT,
        env=os.environ | {"RESTKV_VECTORS": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
