"""Peak memory of the whole process, measured from outside, with and without a budget.

python benchmarks/memory.py --tokens 16000
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from prose import document

CACHES = {"restkv 512": ["--budget", "512"], "full": ["--policy", "full", "--budget", "64"]}


def peak_mib(command: list[str]) -> tuple[float, dict[str, dict[str, float]]]:
    """Run a command; return the peak of its resident memory in MiB and its JSON report."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        output = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit / 2**20, json.loads(output)


def main() -> None:
    """Print one line for each cache."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=16000)
    options = parser.parse_args()
    chat = str(Path(sys.executable).with_name("restkv-chat"))
    print("| cache | tokens | peak MiB, process | K and V MiB | prefill t/s |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(document(int(options.tokens / 1.25), seed=6))
        for name, flags in CACHES.items():
            command = [chat, options.model, "-f", str(text), "-p", "Who painted the sign?"]
            peak, report = peak_mib([*command, "-n", "8", "--temp", "0", "--json", *flags])
            kv, timings = report["kv"], report["timings"]
            print(
                f"| {name} | {timings['prompt_n']} | {peak:.0f} | {kv['bytes'] / 2**20:.0f} |"
                f" {timings['prompt_per_second']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
