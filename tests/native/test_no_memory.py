"""A machine without memory left for a graph: an error, and the same again where it is tried again."""

import os
import subprocess
import sys

import pytest

from tests import builders

pytestmark = pytest.mark.native

SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
import psutil
from restkv_local.errors import NativeError
from restkv_local.native import NativeContext

native = NativeContext(Path(sys.argv[1]))
native.open(2048, n_ring=512, n_ubatch=512, n_threads=1, type_k="f16", type_v="f16")
text = np.random.default_rng(0).integers(10, 250, 2048).tolist()
for i in range(0, 2048, 512):
    native.decode(text[i : i + 512])
weights = np.ones((1, 512), np.float32)
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (16 << 20), limits[1]))
for _ in range(2):
    try:
        native.score(flags=0, weights=weights)
    except NativeError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_AS, limits)
attention, _, _ = native.score(flags=0, weights=weights)
print(np.isfinite(attention[0]).all(), native.used)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not limit a process's memory")
def test_a_graph_that_gets_no_memory_twice_leaves_the_cache_as_it_was(tmp_path):
    """The second time it was taken for one that has memory, and the process ended."""
    # Attention of all queries and rows at once then: 128 MiB.
    environment = os.environ | {"RESTKV_VECTORS": "0"}
    model = builders.llama(n_head=32, n_head_kv=4, head_dim=64).write(tmp_path / "m.gguf")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *refused, last = done.stdout.splitlines()
    assert len(refused) == 2
    assert all("no device memory for a graph of scoring" in line for line in refused)
    assert last == "True 2048"
