"""Memory of the whole process, from outside the cache's own books: it follows the total, not the fullest head."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.native,
    pytest.mark.model,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc"),
]

READ = """
import sys
from pathlib import Path
from restkv_local import Llama
text = Path(sys.argv[1]).read_text()
with Llama("demo", budget=1024, allocation=sys.argv[2], n_threads=1) as llama:
    tokens = llama.native.tokenize(text, add_special=True)[:2700]
    llama.engine.open(len(tokens), 0, 0)
    llama.engine.read(tokens, guide=tokens[-40:])
    assert llama.engine.counters.events > 1
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_mib(allocation):
    story = Path(__file__).parents[2] / "benchmarks" / "harbour.txt"
    done = subprocess.run(
        [sys.executable, "-c", READ, story, allocation], capture_output=True, text=True, check=True
    )
    return int(done.stdout) / 1024


def test_unequal_segments_take_no_more_than_equal_ones():
    assert peak_mib("global") <= 1.15 * peak_mib("uniform")
