"""Question unknown: a text is read within the budget, cut to it, and only then a question is asked.

python benchmarks/ingest.py --policy kvzip --policy restkv+ --budget 25% --json ingest.jsonl
python benchmarks/ingest.py --table ingest.jsonl

Every cell of the log that is there already is left out: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from measured import Log, found_text
from ranking import N_ANSWER, make_sample

from restkv_local import Llama
from restkv_local.allocators.registry import ALLOCATORS
from restkv_local.evaluation.answering import write_answer
from restkv_local.markdown import write_table
from restkv_local.policies.registry import POLICIES
from restkv_local.version import find_commit

KEY = ("task", "tokens", "seed", "policy", "allocation", "budget")


def measure(llama: Llama, task: str, n_tokens: int, seed: int) -> dict[str, Any]:
    """Read one prompt without its question, cut it, ask."""
    engine = llama.engine
    sample = make_sample(llama, f"{task}-unknown", seed, n_tokens)
    engine.open(len(sample.before), len(sample.after) + N_ANSWER, 0)
    engine.clear()
    start = time.perf_counter()
    engine.read(sample.before)
    if engine.rows.mean > engine.budget:
        engine.evict()
    seconds = time.perf_counter() - start
    kept, peak = engine.rows.mean, engine.counters.peak
    text, _ = write_answer(engine, llama.native.logits(), sample.after, N_ANSWER, ())
    return {
        "hit": sample.number is not None and sample.number in text,
        "answer": text,
        "kept": kept / len(sample.before),
        "peak": peak,
        "prefill_s": seconds,
        "prefill_t_s": len(sample.before) / seconds,
        "guide_ms": engine.counters.guide_ms,
        "score_ms": engine.counters.score_ms,
    }


def run(options: argparse.Namespace) -> None:
    """Fill in what the log lacks."""
    log = Log(options.json, commit=find_commit())
    done = {tuple(row[key] for key in KEY) for row in log.rows()}
    for policy in options.policy:
        for budget in options.budget:
            seeds = [
                seed
                for seed in range(options.seed, options.seed + options.samples)
                if (options.task, options.tokens, seed, policy, options.allocation, budget)
                not in done
            ]
            if not seeds:
                continue
            with Llama(
                options.model, temp=0.0, policy=policy, allocation=options.allocation,
                budget=budget, guide="off", n_threads=options.threads,
            ) as llama:  # fmt: skip
                for seed in seeds:
                    place = (options.task, options.tokens, seed)
                    row = dict(zip(KEY, (*place, policy, options.allocation, budget), strict=True))
                    row |= measure(llama, options.task, options.tokens, seed)
                    log.add(row)


def table(path: Path) -> str:
    """Return a line for each policy, allocation and budget."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in Log(path).rows():
        cells[tuple(row[key] for key in KEY if key != "seed")].append(row)
    head = [*(key for key in KEY if key != "seed"), "found (95 %)", "prefill t/s"]
    lines = []
    for key, rows in sorted(cells.items(), key=str):
        speed = statistics.median(row["prefill_t_s"] for row in rows)
        lines.append([*map(str, key), found_text(rows), f"{speed:.0f}"])
    return write_table(head, lines, n_left=len(head))


def main() -> None:
    """Fill the log or print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--task", default="needle", choices=["needle", "multikey"])
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", action="append", choices=POLICIES, help="repeatable")
    parser.add_argument("--allocation", default="global", choices=ALLOCATORS)
    parser.add_argument("--budget", action="append", help="repeatable")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("ingest.jsonl"))
    parser.add_argument("--table", type=Path, help="print the table of this log")
    options = parser.parse_args()
    options.policy = options.policy or ["kvzip"]
    options.budget = options.budget or ["25%"]
    if options.table:
        print(table(options.table))
    else:
        run(options)


if __name__ == "__main__":
    main()
