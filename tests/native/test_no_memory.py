"""A machine without memory left for a graph: an error, and the same again where it is tried again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import builders

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(
        sys.platform != "linux", reason="the system does not limit a process's memory"
    ),
]

DECODE = """
import resource, sys
from pathlib import Path
import psutil
from restkv_local.errors import NativeError
from restkv_local.native import NativeContext

native = NativeContext(Path(sys.argv[1]))
native.open(4096, n_ring=96, n_ubatch=512, n_threads=1, type_k="f16", type_v="f16")
text = list(range(10, 250)) * 2
for _ in range(3):
    native.decode(text)
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (400 << 10), limits[1]))
for _ in range(2):
    try:
        native.decode(text)
    except NativeError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_AS, limits)
native.decode(text)
print(native.used)
"""

SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
import psutil
from restkv_local.errors import NativeError
from restkv_local.native import NativeContext

n_window, n_spare = int(sys.argv[2]), int(sys.argv[3])
native = NativeContext(Path(sys.argv[1]))
native.open(2048, n_ring=n_window, n_ubatch=512, n_threads=2, type_k="f16", type_v="f16")
text = np.random.default_rng(0).integers(10, 250, 2048).tolist()
for i in range(0, 2048, 512):
    native.decode(text[i : i + 512])
weights = np.ones((1, n_window), np.float32)
if sys.argv[4] == "known":
    native.score(flags=0, weights=weights)
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + n_spare, limits[1]))
for _ in range(2):
    try:
        native.score(flags=0, weights=weights)
    except NativeError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_AS, limits)
attention, _, _ = native.score(flags=0, weights=weights)
print(np.isfinite(attention[0]).all(), native.used)
"""


def score_without_memory(
    folder: Path, n_window: int, n_spare: int, graph: str, **environment: str
) -> list[str]:
    """Score twice with n_spare bytes more than the process has, then once with all of them."""
    model = builders.llama(n_head=32, n_head_kv=4, head_dim=64).write(folder / "m.gguf")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(n_window), str(n_spare), graph],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *refused, last = done.stdout.splitlines()
    assert last == "True 2048"
    return refused


def test_a_graph_that_gets_no_memory_twice_leaves_the_cache_as_it_was(tmp_path):
    """The second time it was taken for one that has memory, and the process ended."""
    # Attention of all queries and rows at once then: 128 MiB.
    refused = score_without_memory(tmp_path, 512, 16 << 20, "new", RESTKV_VECTORS="0")
    assert len(refused) == 2
    assert all("no device memory for a graph of scoring" in line for line in refused)


@pytest.mark.parametrize(
    ("n_spare", "reason"),
    [
        (600 << 10, "no memory left"),  # for the nodes of the graph
        (1 << 20, "no memory left in the middle of a graph of scoring"),  # on each thread
    ],
)
def test_memory_that_ends_between_the_steps_of_a_graph_is_an_error(tmp_path, n_spare, reason):
    """Without nodes ggml ended the process, and so did an exception on one of its threads."""
    # The graph has its memory from before; the result takes 512 KiB, a thread wants 726 KiB.
    asks_the_system = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
    refused = score_without_memory(tmp_path, 16, n_spare, "known", **asks_the_system)
    assert len(refused) == 2
    assert all(reason in line for line in refused)


def test_a_decode_that_gets_no_memory_leaves_the_cache_as_it_was(tmp_path):
    """An exception left llama_decode and ended the process."""
    # Where each token goes takes 786 KiB.
    model = builders.llama(n_layer=24, n_head=32, n_head_kv=8, head_dim=32).write(
        tmp_path / "m.gguf"
    )
    done = subprocess.run(
        [sys.executable, "-c", DECODE, str(model)],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *refused, last = done.stdout.splitlines()
    assert refused == ["llama_restkv_decode failed (-5): no memory left"] * 2
    assert last == str(4 * 480)
