"""Where a decode's time goes by operation: products with the weights, attention, the rest.

.venv/bin/python benchmarks/operations.py demo --budget 1024 -d 1024 -d 8192 --json operations.jsonl
.venv/bin/python benchmarks/operations.py --table operations.jsonl

Each operation runs and is timed on its own, which takes longer than a graph in one go (the table says how much) and
leaves out what llama.cpp fuses. The columns are those of `restkv bench`, a process for each cell.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from measured import Log, Row

from restkv_local import Llama
from restkv_local.bench.caches import choose_caches
from restkv_local.bench.text import QUESTION, tokenize_text
from restkv_local.library_folder import library_folder
from restkv_local.markdown import write_table
from restkv_local.native import _library
from restkv_local.version import find_commit

N_STEPS = 64
# The order of the table's columns; what is in none of them is "rest".
PARTS = {
    "weights": ("MUL_MAT", "MUL_MAT_ID"),
    "attention": ("FLASH_ATTN_EXT",),
    "norms": ("RMS_NORM", "NORM"),
    "activation": ("SWIGLU", "GEGLU", "GLU", "SILU", "GELU", "UNARY"),
    "RoPE": ("ROPE",),
    "rows written": ("SET_ROWS",),
    "scoring": ("CUSTOM", "MAP_CUSTOM1", "MAP_CUSTOM2"),
}
NOTHING = ("NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE")


class Stopwatch:
    """Seconds by operation, of every graph that the scheduler of a context computes.

    Attributes
    ----------
    seconds : dict of str to float
        By name of the operation.
    is_on : bool
        Whether operations run one by one; otherwise graphs run as ever.
    """

    def __init__(self) -> None:
        llama = _library.load()
        self.seconds: dict[str, float] = defaultdict(float)
        self.is_on = False
        self._start = 0.0
        (base,) = library_folder().glob("*ggml-base.*")
        self._describe = ctypes.CDLL(str(base)).ggml_op_desc
        self._describe.restype, self._describe.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        self._callback = llama.ggml_backend_sched_eval_callback(self._on_node)
        make_params = llama.llama_context_default_params

        def make_timed_params() -> Any:
            params = make_params()
            params.cb_eval = self._callback
            return params

        # The engine asks for nobody's callback; here every context gets one.
        llama.llama_context_default_params = make_timed_params

    def _on_node(self, tensor: int, asks: bool, _: Any) -> bool:
        if not self.is_on:
            return False
        name = self._describe(tensor).decode()
        if asks:
            self._start = time.perf_counter()
            return name not in NOTHING
        self.seconds[name] += time.perf_counter() - self._start
        return True


def measure(job: Row) -> Row:
    """Read and write twice: as ever, and operation by operation."""
    watch = Stopwatch()
    with Llama(job["model"], **job["options"]) as llama:
        engine = llama.engine
        n_ubatch = engine.config.n_ubatch
        text = tokenize_text(llama.native, job["depth"] + N_STEPS)
        prompt, rest = text[: job["depth"]], text[job["depth"] :]
        guide = []
        if engine.policy.evicts:
            guide = llama.native.tokenize(QUESTION, add_special=False)
            prompt[-len(guide) :] = guide
        engine.open(job["depth"], N_STEPS, 0)
        engine.read(text[:n_ubatch])
        row: Row = {}

        def write() -> None:
            for token in rest:
                engine.step(token)

        parts = {
            "reading": partial(engine.read, prompt, guide=guide),
            "writing": write,
        }
        for one_by_one in (False, True):
            watch.is_on = one_by_one
            engine.clear()
            for part, work in parts.items():
                watch.seconds.clear()
                start = time.perf_counter()
                work()
                seconds = time.perf_counter() - start
                found = row.setdefault(part, {})
                if one_by_one:
                    found |= {"timed_s": seconds, "operations": dict(watch.seconds)}
                else:
                    found["seconds"] = seconds
    return row


def run(options: argparse.Namespace) -> None:
    """Fill in what the log lacks."""
    log = Log(options.json, commit=find_commit(), threads=options.threads)
    columns = choose_caches(references=["full", "tiles"], budgets=options.budget)
    for depth in options.depth:
        for cache in columns:
            key = {"cache": cache.name, "depth": depth}
            if key in log or (options.cache and cache.name not in options.cache):
                continue
            settings = {**cache.options, "n_threads": options.threads}
            done = subprocess.run(
                [sys.executable, __file__, "--cell"],
                input=json.dumps({"model": options.model, "options": settings, "depth": depth}),
                env=os.environ | ({"RESTKV_TILES": "0"} if cache.upstream else {}),
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            log.add(key | json.loads(done.stdout))


def table(rows: list[Row]) -> str:
    """Return a Markdown table: of every part's time the share of each kind of operation, in percent."""
    names = {name: part for part, each in PARTS.items() for name in each}
    lines = []
    for part in ("reading", "writing"):
        for row in rows:
            found = row[part]
            shares: dict[str, float] = defaultdict(float)
            whole = sum(found["operations"].values())
            for name, seconds in found["operations"].items():
                shares[names.get(name, "rest")] += 100 * seconds / whole
            lines.append([
                part, f"{row['depth']:,}", row["cache"], f"{found['seconds']:.1f}",
                *(f"{shares[each]:.0f}" for each in (*PARTS, "rest")),
                f"{found['timed_s'] / found['seconds']:.2f}",
            ])  # fmt: skip
    head = [
        "part",
        "tokens before",
        "cache",
        "s",
        *(f"{each}, %" for each in (*PARTS, "rest")),
        "one by one",
    ]
    return write_table(head, lines, n_left=3)


def main() -> None:
    """Measure, or write the table of a log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("-d", "--depth", type=int, action="append")
    parser.add_argument("--budget", type=int, action="append")
    parser.add_argument("--cache", action="append", help="columns, all by default")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--cell", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(json.load(sys.stdin))))
    elif options.table:
        print(table(Log(options.table).rows()))
    else:
        options.depth, options.budget = options.depth or [1024, 8192], options.budget or [1024]
        run(options)


if __name__ == "__main__":
    main()
