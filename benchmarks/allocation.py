"""Memory and speed of unequal budgets at the same total: what a head gives up is really another's.

python benchmarks/allocation.py --tokens 4000 --budget 1024
"""

from __future__ import annotations

import argparse
import statistics
import time

from prose import document

from restkv_local import Llama
from restkv_local.allocators.registry import ALLOCATORS


def measure(options: argparse.Namespace, allocation: str) -> str:
    """Return one line of the table."""
    with Llama(
        options.model, budget=options.budget, policy=options.policy, allocation=allocation
    ) as llama:
        native, engine = llama.native, llama.engine
        tokens = native.tokenize(document(options.tokens, seed=5), add_special=True)
        tokens = tokens[: options.tokens]
        guide = native.tokenize("What did the harbour master say?", add_special=False)
        engine.open(len(tokens), options.steps, 0)
        start = time.perf_counter()
        engine.read(tokens, guide=guide)
        seconds = time.perf_counter() - start
        engine.evict()  # so that decoding starts from the budget itself
        rows = engine.rows.n_rows
        steps = []
        for token in tokens[: options.steps]:
            start = time.perf_counter()
            engine.step(token)
            steps.append(time.perf_counter() - start)
        report = engine.kv_report()
        cost = (report["score_ms"] + report["compact_ms"]) / 10 / seconds
        cells = [
            allocation,
            f"{rows.min()}..{rows.max()}",
            f"{rows.sum():,}",
            f"{report['bytes'] / 2**20:.1f}",
            f"{len(tokens) / seconds:.0f}",
            f"{cost:.1f}",
            f"{1 / statistics.median(steps):.1f}",
        ]
        return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print one line for each allocation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--policy", default="restkv")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--allocation", action="append", choices=ALLOCATORS, help="repeatable")
    options = parser.parse_args()
    print(
        "| allocation | rows a head | rows | KV MiB | prefill t/s | score+compact % | decode t/s |"
    )
    print("|---|---|---|---|---|---|---|")
    for allocation in options.allocation or ALLOCATORS:
        print(measure(options, allocation), flush=True)


if __name__ == "__main__":
    main()
