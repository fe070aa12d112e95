"""The same prompts through kvpress and through this project: accuracy, seconds, memory.

    python -m venv build/kvpress
    build/kvpress/bin/pip install -r benchmarks/kvpress/requirements.txt
    .venv/bin/python benchmarks/requantise.py demo build/smollm2-bf16.gguf --type bf16
    .venv/bin/python benchmarks/kvpress/side_by_side.py build/side-by-side --prompts
    build/kvpress/bin/python benchmarks/kvpress/presses.py build/smollm2-bf16.gguf build/side-by-side
    .venv/bin/python benchmarks/kvpress/side_by_side.py build/side-by-side --model build/smollm2-bf16.gguf
    .venv/bin/python benchmarks/kvpress/side_by_side.py build/side-by-side --table --png side-by-side.png

Both sides compute with the weights of one GGUF in bfloat16 and log one line a sample; stopped, they
go on where they were. A sample is timed from its text to its answer of up to 24 tokens; memory is the
highest of the whole process meanwhile. Times mean something only if nothing else runs: a second folder with
few prompts, made the same way on a quiet machine, gives them (`--timed FOLDER`). What no bound can save is
measured by `--pieces`: the prompt in pieces that see only themselves, and the same prompt with `restkv`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from meter import measure

sys.path.insert(0, str(Path(__file__).parents[1]))
from measured import Log, Row, found_text
from ranking import N_ANSWER, needle_prompt

from restkv_local import Llama
from restkv_local.chat.ask import Mode
from restkv_local.markdown import write_table
from restkv_local.pictures import open_figure, save_figure
from restkv_local.version import find_commit

NEEDLES = {"needle": 1, "multikey": 4}
CACHES = {  # what is asked for: settings by name of the method
    "read": {
        "restkv": {"policy": "restkv"},
        "restkv+, global": {"policy": "restkv+", "allocation": "global"},
        "snapkv": {"policy": "snapkv"},
    },
    "unknown": {
        "kvzip, global": {"policy": "kvzip", "allocation": "global"},
        "kvzip, global, read whole": {
            "policy": "kvzip",
            "allocation": "global",
            "prefill": "full",
        },
        "restkv+, global": {"policy": "restkv+", "allocation": "global"},
    },
}
MODES: dict[str, Mode] = {"read": "per-question", "unknown": "ingest"}


def write_prompts(
    path: Path, tasks: list[str], n_samples: int, n_tokens: int, first_seed: int
) -> None:
    """Write texts with needles, one question about each."""
    with Llama("demo", budget=64) as llama, path.open("w") as file:
        for task in tasks:
            for seed in range(first_seed, first_seed + n_samples):
                text, question, number = needle_prompt(llama, seed, n_tokens, NEEDLES[task])
                row = {"task": task, "seed": seed, "text": text}
                file.write(json.dumps(row | {"question": question, "number": number}) + "\n")


def read_prompts(folder: Path) -> list[Row]:
    """Return the prompts that both sides answer."""
    return [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]


def open_cache(options: argparse.Namespace, share: float, settings: dict[str, Any]) -> Llama:
    """Open the model with a cache that keeps a share of the rows."""
    return Llama(
        options.model, temp=0.0, n_predict=N_ANSWER, budget=f"{100 * share:.4g}%",
        n_threads=options.threads, **settings,
    )  # fmt: skip


def answer(llama: Llama, prompt: Row, mode: Mode) -> str:
    """Ask as a user would."""
    return next(llama.ask(prompt["text"], prompt["question"], mode=mode)).response


def run(options: argparse.Namespace) -> None:
    """Answer every prompt with every cache and share of rows."""
    prompts = read_prompts(options.folder)
    log = Log(options.folder / "restkv.jsonl", commit=find_commit())
    for known in options.question or CACHES:
        whole = known == "read" and not options.no_full
        cells = [("full", 1.0, {"policy": "full"})] if whole else []
        cells += [
            (method, share, settings)
            for share in options.share or (0.1, 0.25, 0.5)
            for method, settings in CACHES[known].items()
            if method in (options.method or CACHES[known])
        ]
        for method, share, settings in cells:
            with open_cache(options, share, settings) as llama:
                for prompt in prompts:
                    key = {
                        "side": "restkv-local",
                        "question": known,
                        "share": share,
                        "method": method,
                    }
                    key |= {name: prompt[name] for name in ("task", "seed")}
                    ask = partial(answer, llama, prompt, MODES[known])
                    measure(log, prompt["number"], ask, **key)


def read_pieces(llama: Llama, prompt: Row) -> str:
    """Read a prompt as chunks that know nothing of each other: what is left of the time without old rows."""
    engine = llama.engine
    tokens = llama.native.tokenize(prompt["text"], add_special=True)
    n = llama.config.n_ubatch
    engine.open(n, 0, 0)
    for start in range(0, len(tokens), n):
        engine.clear()
        engine.read(tokens[start : start + n], evict=False)
    return ""


def run_pieces(options: argparse.Namespace) -> None:
    """Read every prompt in pieces, and by `restkv` with every share of rows, one after the other."""
    log = Log(options.folder / "pieces.jsonl", commit=find_commit())
    for prompt in read_prompts(options.folder):
        key = {name: prompt[name] for name in ("task", "seed")}
        with Llama(options.model, n_threads=options.threads) as llama:
            measure(log, "", partial(read_pieces, llama, prompt), **key, method="pieces", share=0)
        for share in options.share or (0.1,):
            with open_cache(options, share, CACHES["read"]["restkv"]) as llama:
                ask = partial(answer, llama, prompt, MODES["read"])
                measure(log, prompt["number"], ask, **key, method="restkv", share=share)


def read_rows(folder: Path) -> list[Row]:
    """Return what both sides measured."""
    return [row for side in ("restkv", "kvpress") for row in Log(folder / f"{side}.jsonl").rows()]


def cells_of(rows: list[Row], known: str) -> dict[tuple[str, str], dict[float, list[Row]]]:
    """Group rows by side and method, then by share; most found first."""
    cells: dict[tuple[str, str], dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        # The full cache here is the same whether the question is known or not.
        whole_here = row["side"] == "restkv-local" and row["method"] == "full"
        if row["question"] == known or whole_here:
            cells[row["side"], row["method"]][row["share"]].append(row)

    def merit(item: tuple[Any, dict[float, list[Row]]]) -> float:
        every = [row["hit"] for cell in item[1].values() for row in cell]
        return -sum(every) / len(every)

    return dict(sorted(cells.items(), key=merit))


def table(rows: list[Row], timed: list[Row], known: str) -> str:
    """Return a Markdown table for one way of asking; seconds and memory, by share, come from ``timed``."""
    cells, clock = cells_of(rows, known), cells_of(timed, known)
    shares = sorted({share for cell in cells.values() for share in cell if share < 1})
    tasks = [task for task in NEEDLES if any(row["task"] == task for row in rows)]
    heads = [f"{task} at {100 * share:.4g}%" for task in tasks for share in shares]
    lines = []
    for (side, method), by_share in cells.items():
        texts = [side, method]
        texts += [
            found_text([row for row in by_share.get(share, by_share[1.0]) if row["task"] == task])
            for task in tasks
            for share in shares
        ]
        alone = clock.get((side, method), {})
        for field, digits in (("seconds", 1), ("peak_mib", 0)):
            medians = [
                statistics.median(row[field] for row in alone[each]) for each in sorted(alone)
            ]
            texts.append(" / ".join(f"{median:.{digits}f}" for median in medians))
        lines.append(texts)
    each = " / ".join(f"{100 * share:.4g}%" for share in shares)
    head = ["side", "method", *heads, f"s a sample at {each}", f"peak MiB at {each}"]
    return write_table(head, lines, n_left=len(head) - 2)


def medians_of(rows: list[Row], side: str, share: float, field: str) -> list[float]:
    """Return the median of each method of a side, the question read before the eviction; least first."""
    return sorted(
        statistics.median(row[field] for row in by_share[share])
        for (found, _), by_share in cells_of(rows, "read").items()
        if found == side and by_share.get(share)
    )


def pace(lots: dict[int, list[Row]]) -> str:
    """Return a Markdown table with a line for each length and share: what all methods took on either side.

    ``lots`` has the rows by tokens of the prompt; those with the question read before the eviction count.
    """
    head = [
        "tokens", "kept", "prompts", "s a sample here", "kvpress", "times as long",
        "peak MiB here", "kvpress", "times as much",
    ]  # fmt: skip
    lines = []
    for n_tokens, rows in sorted(lots.items()):
        rows = [row for row in rows if row["question"] == "read" and row["share"] < 1]
        for share in sorted({row["share"] for row in rows}):
            samples = {row["seed"] for row in rows if row["share"] == share}
            texts = [f"{n_tokens:,}", f"{100 * share:.4g}%", str(len(samples))]
            for field, digits in (("seconds", 1), ("peak_mib", 0)):
                here, there = (
                    medians_of(rows, side, share, field) for side in ("restkv-local", "kvpress")
                )
                texts += [f"{side[0]:,.{digits}f}-{side[-1]:,.{digits}f}" for side in (here, there)]
                texts.append(f"{there[0] / here[-1]:.1f}-{there[-1] / here[0]:.1f}")
            lines.append(texts)
    return write_table(head, lines, n_left=0)


def ceiling(lots: dict[int, tuple[list[Row], list[Row]]]) -> str:
    """Return a Markdown table of how much faster than kvpress `restkv` is, and any bounded cache could be.

    ``lots`` has, by tokens of the prompt, the rows of both sides and those of `--pieces`. Prompts that both have count.
    """
    head = [
        "tokens", "kept", "prompts", "s in pieces", "s restkv", "s kvpress", "over restkv", "over pieces",
    ]  # fmt: skip
    lines = []
    for n_tokens, (rows, pieces) in sorted(lots.items()):
        for share in sorted({row["share"] for row in pieces} - {0}):
            asked = [row for row in rows if row["question"] == "read" and row["share"] == share]
            seeds = {row["seed"] for row in asked if row["side"] == "kvpress"}
            seeds &= {row["seed"] for row in pieces}
            least, here = (
                statistics.median(
                    row["seconds"]
                    for row in pieces
                    if row["share"] == part and row["seed"] in seeds
                )
                for part in (0, share)
            )
            common = [row for row in asked if row["seed"] in seeds]
            there = medians_of(common, "kvpress", share, "seconds")
            spread = there[0], there[-1]
            texts = [f"{n_tokens:,}", f"{100 * share:.4g}%", str(len(seeds))]
            texts += [f"{least:.1f}", f"{here:.1f}", "-".join(f"{each:.1f}" for each in spread)]
            texts += ["-".join(f"{each / ours:.1f}" for each in spread) for ours in (here, least)]
            lines.append(texts)
    return write_table(head, lines, n_left=0)


def draw(rows: list[Row], timed: list[Row], path: Path) -> None:
    """Draw accuracy against seconds, a point for each method and share."""
    figure = open_figure(11, 4.5)
    for axes, known in zip(figure.subplots(1, 2, sharey=True), MODES, strict=True):
        axes.set_title("question read first" if known == "read" else "question unknown")
        axes.set_xlabel("seconds a sample (median)")
        axes.set_xscale("log")
        clock = cells_of(timed, known)
        for (side, method), by_share in cells_of(rows, known).items():
            points = [
                (
                    statistics.median(row["seconds"] for row in clock[side, method][share]),
                    100 * statistics.mean(row["hit"] for row in by_share[share]),
                )
                for share in sorted(by_share)
                if clock.get((side, method), {}).get(share)
            ]
            ours = side == "restkv-local"
            axes.plot(
                *zip(*points, strict=True),
                marker="o" if ours else "x",
                linestyle="-" if ours else "--",
                label=f"{side}: {method}",
            )
        axes.legend(fontsize=7)
        axes.set_ylabel("found, %")
    save_figure(figure, path)


def main() -> None:
    """Write the prompts, run this side, or show what both sides measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the prompts are and the logs are kept")
    parser.add_argument("--prompts", action="store_true", help="write the prompts")
    parser.add_argument("--task", choices=NEEDLES, action="append", help="repeatable")
    parser.add_argument("--samples", type=int, default=10, help="prompts of each task")
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--share", type=float, action="append", help="rows kept; repeatable")
    parser.add_argument("--question", choices=CACHES, action="append", help="repeatable")
    methods = dict.fromkeys(method for caches in CACHES.values() for method in caches)
    parser.add_argument("--method", choices=methods, action="append", help="repeatable")
    parser.add_argument("--no-full", action="store_true", help="leave the whole cache out")
    parser.add_argument("--pieces", action="store_true", help="what no bound can save, in seconds")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print the tables of both logs")
    parser.add_argument("--timed", type=Path, help="the folder that seconds and memory come from")
    parser.add_argument("--png", type=Path, help="draw the logs")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.prompts:
        path = options.folder / "prompts.jsonl"
        tasks = options.task or list(NEEDLES)
        write_prompts(path, tasks, options.samples, options.tokens, options.seed)
    elif options.table or options.png:
        rows, timed = read_rows(options.folder), read_rows(options.timed or options.folder)
        if options.table:
            print(*(table(rows, timed, known) for known in MODES), sep="\n\n")
        if options.png:
            draw(rows, timed, options.png)
    elif options.pieces:
        run_pieces(options)
    else:
        run(options)


if __name__ == "__main__":
    main()
