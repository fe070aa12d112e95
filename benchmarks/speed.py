"""Decode and prefill speed against tokens seen, each cache in the same run.

python benchmarks/speed.py --seen 600 --seen 4000 --seen 16000
"""

from __future__ import annotations

import argparse
import statistics
import time

from prose import document

from restkv_local import Llama

CACHES = {
    "restkv 512": {"budget": 512},
    "full f16": {"policy": "full", "budget": 64},
    "full q8_0": {"policy": "full", "budget": 64, "type_k": "q8_0", "type_v": "q8_0"},
}


def measure(model: str, cache: dict[str, object], n_seen: int, n_steps: int) -> tuple[float, float]:
    """Return prefill and decode tokens per second; decode is the median of single steps."""
    with Llama(model, n_predict=n_steps, **cache) as llama:
        native, engine = llama.native, llama.engine
        tokens = native.tokenize(document(n_seen, seed=5), add_special=True)[:n_seen]
        guide = native.tokenize("What did the harbour master say?", add_special=False)
        engine.open(len(tokens), n_steps, 0)
        start = time.perf_counter()
        engine.read(tokens, guide=guide)
        prefill = len(tokens) / (time.perf_counter() - start)
        steps = []
        for token in tokens[:n_steps]:
            start = time.perf_counter()
            engine.step(token)
            steps.append(time.perf_counter() - start)
        return prefill, 1 / statistics.median(steps)


def main() -> None:
    """Print one line for each cache and length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seen", type=int, action="append", help="repeatable")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--cache", action="append", choices=list(CACHES), help="repeatable")
    options = parser.parse_args()
    print("| cache | seen | prefill t/s | decode t/s | decode, share of the first row |")
    print("|---|---|---|---|---|")
    for name in options.cache or CACHES:
        first = None
        for n_seen in options.seen or [600, 4000, 16000]:
            prefill, decode = measure(options.model, CACHES[name], n_seen, options.steps)
            first = first or decode
            print(
                f"| {name} | {n_seen} | {prefill:.0f} | {decode:.1f} | {decode / first:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
