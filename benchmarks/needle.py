"""Needle in prose: a sentence with a 7-digit number, plain chat template, no answer prefix.

python benchmarks/needle.py --tokens 1500 --budget 256 --budget 128 --full
python benchmarks/needle.py --tokens 256000 --budget 512 --samples 3 --json needle.jsonl
python benchmarks/needle.py --table needle.jsonl

With --json a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measured import Log, found_text
from prose import document

from restkv_local import ChatSession, Llama
from restkv_local.evaluation.tasks.niah import THINGS
from restkv_local.markdown import write_table
from restkv_local.pictures import open_figure, save_figure
from restkv_local.sequence import Progress
from restkv_local.version import find_commit

N_PACE = 8192  # tokens


def make_prompt(llama: Llama, seed: int, n_tokens: int, depth: float) -> tuple[str, str, str]:
    """Return a document of about ``n_tokens`` tokens, a question and the number that answers it."""
    rng = random.Random(1000 + seed)
    thing, number = rng.choice(THINGS), str(rng.randint(1_000_000, 9_999_999))
    needle = f"The registration number of the {thing} is {number}."
    n_words = int(n_tokens / 1.25)
    for _ in range(4):  # words to tokens: close in on the length
        text = document(n_words, seed, needle, depth)
        n_words = int(n_words * n_tokens / len(llama.native.tokenize(text, add_special=False)))
    return text, f"What is the registration number of the {thing}?", number


def ask(llama: Llama, prompt: tuple[str, str, str]) -> dict[str, Any]:
    """Ask in a fresh session; return what the table and the log need."""
    text, question, number = prompt
    session = ChatSession(llama)
    marks: list[Progress] = []
    answer = "".join(session.send(question, documents=[text], on_progress=marks.append))
    row = {"hit": number in answer, "number": number, "answer": answer, "pace": pace(marks)}
    return row | session.report.timings | session.report.kv


def pace(marks: list[Progress]) -> float | None:
    """Return the speed of the last 8,192 tokens over that of the first; None if they overlap."""
    total = marks[-1].processed
    first = next((mark for mark in marks if mark.processed >= N_PACE), None)
    before = next((mark for mark in marks if mark.processed >= total - N_PACE), None)
    if first is None or before is None or before.processed < first.processed:
        return None
    last_s = (marks[-1].seconds - before.seconds) / (total - before.processed)
    return first.seconds / first.processed / last_s


def table(rows: list[dict[str, Any]]) -> str:
    """Return a line for each length and cache."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        settings = ", ".join(f"{name}={value}" for name, value in row["set"].items())
        cells[row["tokens"], f"{row['cell']} {settings}".strip()].append(row)
    head = [
        "cache", "tokens", "found (95 %)", "prefill t/s", "last 8k / first 8k", "score+compact %", "guide %",
        "KV MiB / full",
    ]  # fmt: skip
    # Stable: caches of one length stay in the order they were measured in.
    lots = sorted(cells.items(), key=lambda item: item[0][0])
    columns = zip(head, *(summarise(name, lot) for (_, name), lot in lots), strict=True)
    shown, *lines = zip(*(column for column in columns if any(column[1:]) or not lots), strict=True)
    return write_table(shown, lines, n_left=len(shown))


def summarise(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return one line of the table; of a run that was held up meanwhile the log has no times."""
    timed = [row for row in rows if "prompt_ms" in row]

    def share(*keys: str) -> str:
        spent = sum(row[key] for row in timed for key in keys)
        return f"{100 * spent / sum(row['prompt_ms'] for row in timed):.1f}" if timed else ""

    speeds = [row["prompt_per_second"] for row in timed]
    paces = [row["pace"] for row in timed if row.get("pace")]
    return [
        name,
        f"{statistics.median(row['prompt_n'] for row in rows):,.0f}",
        found_text(rows),
        f"{statistics.median(speeds):.0f}" if speeds else "",
        f"{statistics.median(paces):.2f}" if paces else "",
        share("score_ms", "compact_ms"),
        share("guide_ms"),
        f"{rows[0]['bytes'] / 2**20:.0f} / {rows[0]['bytes_full'] / 2**20:,.0f}",
    ]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw a panel for each cache: length on x, depth of the needle on y, whether it was found."""
    cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        cells[", ".join([row["cell"], *map(str, row["set"].values())])].append(row)
    lengths = sorted({row["tokens"] for row in rows})
    figure = open_figure(3.6 * len(cells), 3.4)
    panels = figure.subplots(1, len(cells), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, lot) in zip(panels, sorted(cells.items()), strict=True):
        for hit, colour, label in ((True, "tab:blue", "found"), (False, "tab:red", "not found")):
            found = [row for row in lot if row["hit"] == hit]
            places = [lengths.index(row["tokens"]) for row in found]
            depths = [100 * row["depth"] for row in found]
            axes.scatter(places, depths, marker="s", s=60, color=colour, label=label)
        axes.set_title(name, loc="left", fontsize="medium")
        axes.set_xlabel("tokens")
        axes.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], rotation=60)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("depth, %")
    panels[0].set_ylim(100, 0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    save_figure(figure, path)


def main() -> None:
    """Ask the same prompts with each cache and print one line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--budget", action="append", help="repeatable")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", action="append", help="repeatable")
    parser.add_argument("--full", action="store_true", help="with the full cache too, or alone")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other option"
    )
    parser.add_argument("--json", type=Path, help="a line for each sample, kept between runs")
    parser.add_argument("--table", type=Path, help="print the table of this log")
    options = parser.parse_args()
    if options.table:
        print(table(Log(options.table).rows()))
        return

    extra: dict[str, Any] = {}
    for item in options.set:
        name, value = item.split("=", 1)
        try:
            extra[name] = json.loads(value)
        except json.JSONDecodeError:
            extra[name] = value
    cells: list[tuple[str, dict[str, Any]]] = []
    if options.full:
        cells.append(("full", {"policy": "full", "budget": 64}))
    if options.policy or options.budget or not options.full:
        for policy in options.policy or ["restkv"]:
            for budget in options.budget or ["256"]:
                cells.append((f"{policy} {budget}", {"policy": policy, "budget": budget, **extra}))

    seeds = range(options.seed, options.seed + options.samples)
    log = Log(options.json, commit=find_commit())
    measured = []
    for name, settings in cells:
        cell = {"cell": name, "tokens": options.tokens, "set": extra}
        with ExitStack() as stack:
            llama = None
            for i, seed in enumerate(seeds):
                sample = cell | {"seed": seed, "depth": (i + 0.5) / options.samples}
                if sample in log:
                    continue
                if llama is None:
                    llama = stack.enter_context(
                        Llama(
                            options.model,
                            temp=0.0,
                            n_predict=32,
                            n_threads=options.threads,
                            **settings,
                        )
                    )
                prompt = make_prompt(llama, seed, options.tokens, sample["depth"])
                log.add(sample | ask(llama, prompt))
        measured += log.rows(cell)
    print(table(measured))


if __name__ == "__main__":
    main()
