"""The bench's `full` and `full q8_0` beside llama.cpp as it is released: the unpatched build without our library.

make stock
.venv/bin/python benchmarks/stock.py demo -d 1024 -d 8192 -r 3 --json stock.jsonl
.venv/bin/python benchmarks/stock.py --table stock.jsonl

Each measurement is a process of its own; who comes first changes from round to round. What the log has is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from measured import Log, Row

from restkv_local.bench import N_GEN, N_PROMPT
from restkv_local.bench.caches import choose_caches
from restkv_local.bench.cell import Cell
from restkv_local.bench.process import run_cell
from restkv_local.bench.text import tokenize_text
from restkv_local.config import DEFAULTS
from restkv_local.llama import Llama
from restkv_local.markdown import write_table
from restkv_local.model.demo import resolve_model
from restkv_local.version import find_commit

STOCK = Path(__file__).parents[1] / "build" / "stock" / "bin"
GGML_TYPES = {"full": 1, "full q8_0": 8}
FIGURES = {"ttft_s": ("ttft", "s"), "pp_s": (f"pp{N_PROMPT}", "s"), "tg_s": (f"tg{N_GEN}", "s")}
CHILD = """
import ctypes, json, os, sys, time
import llama_cpp.llama_cpp as llama
job = json.loads(sys.stdin.read())
log = llama.llama_log_callback(lambda *_: None)
llama.llama_log_set(log, None)
model = llama.llama_model_load_from_file(os.fsencode(job["model"]), llama.llama_model_default_params())
params = llama.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = job["n_ctx"], job["n_ubatch"], job["n_ubatch"]
params.n_threads = params.n_threads_batch = job["n_threads"]
params.type_k = params.type_v = job["type_kv"]
params.flash_attn_type, params.kv_unified, params.no_perf = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED, True, True
ctx = llama.llama_init_from_model(model, params)
memory = llama.llama_get_memory(ctx)

def read(tokens):
    start = time.perf_counter()
    for i in range(0, len(tokens), job["n_ubatch"]):
        part = tokens[i : i + job["n_ubatch"]]
        array = (llama.llama_token * len(part))(*part)
        assert llama.llama_decode(ctx, llama.llama_batch_get_one(array, len(part))) == 0
        llama.llama_get_logits_ith(ctx, -1)[0]
    return time.perf_counter() - start

text, depth = job["tokens"], job["depth"]
rest = text[depth:]
read(text[: job["n_ubatch"]])
read(text[:1])
llama.llama_memory_clear(memory, True)
result = {"ttft_s": read(text[:depth])}
result["tg_s"] = sum(read([token]) for token in rest[: job["n_gen"]])
llama.llama_memory_seq_rm(memory, 0, depth, -1)
result["pp_s"] = read(rest[: job["n_prompt"]])
print(json.dumps(result))
"""


def run_stock(model: Path, cache: str, depth: int, tokens: list[int], n_threads: int) -> Row:
    """Measure the unpatched library."""
    job = {
        "model": str(model), "depth": depth, "tokens": tokens, "n_threads": n_threads, "n_ubatch": DEFAULTS.n_ubatch,
        "n_ctx": len(tokens), "type_kv": GGML_TYPES[cache], "n_prompt": N_PROMPT, "n_gen": N_GEN,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(job),
        env=os.environ | {"LLAMA_CPP_LIB_PATH": str(STOCK)},
        check=True,
        capture_output=True,
        text=True,
    )
    result: Row = json.loads(done.stdout)
    return result


def run_ours(model: Path, cache: str, depth: int, n_threads: int) -> Row:
    """Measure a column of the bench."""
    (column,) = [each for each in choose_caches(references=["full", "q8_0"]) if each.name == cache]
    options = {**column.options, "n_threads": n_threads}
    result = run_cell(
        Cell(model=str(model), options=options, depth=depth, upstream=column.upstream)
    )["result"]
    return {name: result[name] for name in FIGURES}


def run(options: argparse.Namespace) -> None:
    """Fill in what the log lacks."""
    if not STOCK.exists():
        sys.exit(f"{STOCK} is missing: run make stock")
    model = Path(resolve_model(options.model))
    with Llama(str(model), budget=64) as llama:
        text = tokenize_text(llama.native, max(options.depth) + max(N_PROMPT, N_GEN))
    log = Log(options.json, commit=find_commit(), threads=options.threads)
    for repetition in range(options.repetitions):
        for depth in options.depth:
            for cache in options.cache or GGML_TYPES:
                sides = ["stock", "bench"]
                for side in sides if repetition % 2 == 0 else sides[::-1]:
                    key: dict[str, Any] = {
                        "side": side, "cache": cache, "depth": depth, "repetition": repetition,
                    }  # fmt: skip
                    if key in log:
                        continue
                    tokens = text[: depth + max(N_PROMPT, N_GEN)]
                    row = (
                        run_stock(model, cache, depth, tokens, options.threads)
                        if side == "stock"
                        else run_ours(model, cache, depth, options.threads)
                    )
                    print(key | row, file=sys.stderr)
                    log.add(key | row)


def table(rows: list[Row]) -> str:
    """Return a Markdown table: medians of both sides, and of their ratio within a round."""
    lines = []
    for cache in GGML_TYPES:
        for depth in sorted({row["depth"] for row in rows if row["cache"] == cache}):
            found = [row for row in rows if (row["cache"], row["depth"]) == (cache, depth)]
            sides = {
                side: {row["repetition"]: row for row in found if row["side"] == side}
                for side in ("stock", "bench")
            }
            both = sorted(sides["stock"].keys() & sides["bench"].keys())
            for figure, (test, unit) in FIGURES.items():
                stock, bench = ([side[i][figure] for i in both] for side in sides.values())
                ratios = [ours / theirs for ours, theirs in zip(bench, stock, strict=True)]
                lines.append([
                    cache, f"{test} @ d{depth}", unit,
                    *(f"{statistics.median(each):.2f}" for each in (stock, bench, ratios)),
                    f"{min(ratios):.2f}-{max(ratios):.2f}",
                ])  # fmt: skip
    head = ["cache", "test", "unit", "unpatched", "bench", "bench / unpatched", "range"]
    return write_table(head, lines, n_left=3)


def main() -> None:
    """Measure, or write the table of a log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("-d", "--depth", type=int, action="append")
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--cache", action="append", choices=list(GGML_TYPES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    if options.table:
        print(table(Log(options.table).rows()))
        return
    options.depth = options.depth or [1024, 8192]
    run(options)


if __name__ == "__main__":
    main()
