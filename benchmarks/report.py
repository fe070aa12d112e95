"""Rebuilds the tables of README and of benchmarks/results from the logs beside them, and the pictures.

python benchmarks/report.py            # write
python benchmarks/report.py --check    # write nothing; exit 1 if a table says anything else than its log

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a key of TABLES.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ingest
import needle
import operations
import ranking
import stock
import talk
from measured import Log, Row

sys.path.insert(0, str(Path(__file__).parent / "kvpress"))
import side_by_side

from restkv_local.bench.plot import draw_bench
from restkv_local.bench.report import BenchReport
from restkv_local.evaluation import reconstruction
from restkv_local.evaluation.log import LogContent, Record, read_log
from restkv_local.evaluation.plots import draw_records
from restkv_local.evaluation.report import write_report
from restkv_local.evaluation.summary import family_mean, split_sections
from restkv_local.markdown import write_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RULER = ("ruler-1024", "ruler-2048", "ruler-4096")  # a log for each length
KVPRESS_ALONE = {  # prompts that had the machine to themselves, by their tokens
    n_tokens: RESULTS / f"side-by-side-{name}"
    for n_tokens, name in (
        (1500, "timed"),
        (8000, "8000-bf16"),
        (16000, "16000-bf16"),
        (32000, "32000-bf16"),
    )
}
TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

# README's choice of the bench: (test, unit)
BENCHED = [
    ("ttft", "s"),
    ("pp512", "t/s"),
    ("tg128", "t/s"),
    ("peak memory", "MiB"),
    ("K and V", "MiB"),
    ("score+compact", "% of ttft"),
    ("guide", "% of ttft"),
]


def read(name: str) -> list[Row]:
    """Return the rows of a log."""
    return Log(RESULTS / f"{name}.jsonl").rows()


def long_needles() -> list[Row]:
    """Return needles in texts that few rows stay of."""
    return [row for row in read("needle") if row["tokens"] >= 4000]


def bench(name: str = "bench") -> BenchReport:
    """Read a log of `restkv bench`."""
    return BenchReport.from_log(RESULTS / f"{name}.jsonl")


def bench_choice() -> str:
    """Lines of the bench that README shows: a line for each depth and column."""
    report = bench()
    lines = [
        "| depth | cache | " + " | ".join(f"{test}, {unit}" for test, unit in BENCHED) + " |",
        "|---:|---|" + "---:|" * len(BENCHED),
    ]
    found = {(f.depth, f.cache, f.test, f.unit): f for f in report.figures()}
    for depth in sorted({depth for depth, *_ in found}):
        for cache in report.names:
            cells = [found.get((depth, cache, *test)) for test in BENCHED]
            if any(cells):
                texts = [f"{f.median:,.{f.digits}f}" if f else "" for f in cells]
                lines.append(f"| {depth:,} | {cache} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def scores(name: str) -> tuple[Record, ...]:
    """Return the scores of a log of `restkv eval`."""
    return tuple(read_log(RESULTS / f"{name}.jsonl").records)


def layer_errors() -> LogContent:
    """Return the reconstruction errors; perplexity has a log of more shares."""
    log = read_log(RESULTS / "text.jsonl")
    found = [record for record in log.records if record.item.family == reconstruction.NAME]
    return replace(log, records=found)


def ruler() -> list[Record]:
    """Return the scores of RULER at all lengths."""
    return [record for name in RULER for record in scores(name)]


def ruler_choice() -> str:
    """Means of RULER's thirteen tasks: a line for each policy and budget, a column for each length."""
    sections = split_sections(ruler())
    # By place alone all heads keep the same rows, however they share them.
    cells = dict.fromkeys(
        cell
        for section in sections
        for cell in section.cells
        if (cell.policy, cell.allocation) != ("streamingllm", "global")
    )
    heads = [f"{section.length:,} tokens" for section in sections]
    lines = []
    for cell in cells:
        texts = [cell.policy, "-", "-"]
        if cell.evicts:
            texts = [cell.policy, cell.allocation, cell.budget]
        for section in sections:
            found = section.of(cell)
            texts.append(f"{family_mean(found).mean.value:.1f}" if found else "")
        lines.append(texts)
    return write_table(["policy", "allocation", "budget", *heads], lines, n_left=3)


def kvpress() -> tuple[list[side_by_side.Row], list[side_by_side.Row]]:
    """Return what the comparison with kvpress found, and the samples it was timed with."""
    folders = RESULTS / "side-by-side", RESULTS / "side-by-side-timed"
    found, timed = (side_by_side.read_rows(folder) for folder in folders)
    return found, timed


def kvpress_multikey() -> str:
    """Four keys, one asked: what was found; nobody had the machine to itself."""
    rows = side_by_side.read_rows(RESULTS / "side-by-side-multikey")
    return side_by_side.table(rows, [], "read")


def kvpress_alone(name: str, known: str = "read", share: float | None = None) -> str:
    """Prompts that had the machine to themselves: what was found, and what it took."""
    rows = side_by_side.read_rows(RESULTS / f"side-by-side-{name}")
    rows = [row for row in rows if share is None or row["share"] in (share, 1)]
    return side_by_side.table(rows, rows, known)


def kvpress_pace() -> str:
    """Compare what prompts of every length took that had the machine to themselves, both sides in bfloat16."""
    return side_by_side.pace(
        {n: side_by_side.read_rows(folder) for n, folder in KVPRESS_ALONE.items()}
    )


def kvpress_ceiling() -> str:
    """Compare that with what the same prompts take in pieces that see only themselves."""
    return side_by_side.ceiling(
        {
            n: (side_by_side.read_rows(folder), side_by_side.Log(folder / "pieces.jsonl").rows())
            for n, folder in KVPRESS_ALONE.items()
        }
    )


TABLES: dict[str, Callable[[], str]] = {
    "needle": lambda: needle.table(read("needle")),
    "needle-pace": lambda: needle.table(read("needle-pace")),
    "needle-text-first": lambda: needle.table(read("needle-text-first")),
    "talk": lambda: talk.table(read("talk")),
    "bench-choice": bench_choice,
    "bench": lambda: bench().to_markdown(with_profile=True),
    "bench-rounds": lambda: bench("bench-rounds").to_markdown(),
    "bench-avx2": lambda: bench("bench-avx2").to_markdown(with_profile=True),
    "bench-avx2-rounds": lambda: bench("bench-avx2-rounds").to_markdown(),
    "bench-stock": lambda: stock.table(read("stock")),
    "bench-operations": lambda: operations.table(read("operations")),
    "bench-answer": lambda: bench("bench-answer").to_markdown(with_profile=True),
    "bench-allocations": lambda: bench("bench-allocations").to_markdown(),
    "bench-1b": lambda: bench("bench-1b").to_markdown(with_profile=True),
    "bench-budgets": lambda: bench("bench-budgets").to_markdown(),
    "bench-policies": lambda: bench("bench-policies").to_markdown(),
    "ruler-choice": ruler_choice,
    "ruler": lambda: write_report([read_log(RESULTS / f"{name}.jsonl") for name in RULER]),
    "ruler-bounded": lambda: write_report([read_log(RESULTS / "ruler-bounded.jsonl")]),
    "text": lambda: write_report([layer_errors()]),
    "text-shares": lambda: write_report([read_log(RESULTS / "text-shares.jsonl")]),
    "niah": lambda: write_report([read_log(RESULTS / "niah.jsonl")]),
    "ingest": lambda: ingest.table(RESULTS / "ingest.jsonl"),
    "ranking": lambda: ranking.tables(read("ranking")),
    "ranking-variants": lambda: ranking.tables(read("ranking-variants")),
    "ranking-heldout": lambda: ranking.tables(read("ranking-heldout")),
    "kvpress-read": lambda: side_by_side.table(*kvpress(), "read"),
    "kvpress-multikey": kvpress_multikey,
    "kvpress-multikey-unknown": lambda: kvpress_alone("multikey-unknown", "unknown"),
    "kvpress-pace": kvpress_pace,
    "kvpress-ceiling": kvpress_ceiling,
    "kvpress-8000": lambda: kvpress_alone("8000"),
    "kvpress-8000-bf16": lambda: kvpress_alone("8000-bf16"),
    "kvpress-16000": lambda: kvpress_alone("16000"),
    "kvpress-16000-bf16": lambda: kvpress_alone("16000-bf16", share=0.1),
    "kvpress-16000-few": lambda: kvpress_alone("16000-bf16", share=0.02),
    "kvpress-32000": lambda: kvpress_alone("32000"),
    "kvpress-32000-bf16": lambda: kvpress_alone("32000-bf16", share=0.1),
    "kvpress-32000-few": lambda: kvpress_alone("32000-bf16", share=0.02),
    "kvpress-unknown": lambda: side_by_side.table(*kvpress(), "unknown"),
}
PICTURES: dict[str, Callable[[Path], Any]] = {
    "needle.png": lambda path: needle.draw(long_needles(), path),
    "side-by-side.png": lambda path: side_by_side.draw(*kvpress(), path),
    "bench.png": lambda path: draw_bench(bench(), path),
    "quality": lambda folder: draw_records(
        [*ruler(), *layer_errors().records, *scores("text-shares")], folder
    ),
}


def rebuild(text: str) -> str:
    """Return a page with its tables as the logs have them."""
    return TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def main() -> None:
    """Write or check every page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    options = parser.parse_args()
    stale = []
    for page in (ROOT / "README.md", *sorted(RESULTS.glob("*.md"))):
        text = page.read_text()
        rebuilt = rebuild(text)
        if rebuilt != text:
            stale.append(str(page.relative_to(ROOT)))
            if not options.check:
                page.write_text(rebuilt)
    if options.check:
        if stale:
            parser.exit(1, f"not as the logs have it: {', '.join(stale)}; run {sys.argv[0]}\n")
        return
    for name, draw in PICTURES.items():
        draw(RESULTS / name)
    print(f"rebuilt {', '.join(stale) or 'nothing'}; drew {', '.join(PICTURES)}")


if __name__ == "__main__":
    main()
