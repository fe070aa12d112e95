"""Conversations past the budget: a fact is read and asked about, many turns later it is asked about again.

python benchmarks/talk.py --json talk.jsonl
python benchmarks/talk.py --table talk.jsonl

A talk: a text of 1,200 tokens with one number, a question about it, five turns with other paragraphs and a question
about each, the first question again. The full cache is the control: what it forgets, the model forgets (after ten such
turns this one nearly always does). A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from measured import Log, found_text
from needle import make_prompt

from restkv_local import ChatSession, Llama
from restkv_local.evaluation.prose import write_paragraphs
from restkv_local.markdown import write_table
from restkv_local.version import find_commit

N_TEXT = 1200  # tokens of the text with the fact
# No two alike: a small model then repeats the pattern, with nothing evicted too.
QUESTIONS = (
    "What is this text about?", "Who is in this text?", "Where does this happen?",
    "Name one thing that this text mentions.", "Summarize this in one sentence.",
)  # fmt: skip
CACHES: dict[str, dict[str, Any]] = {
    "full": {"policy": "full", "budget": 64},
    "restkv 512": {"policy": "restkv", "budget": 512},
    "restkv+ 512, global": {"policy": "restkv+", "allocation": "global", "budget": 512},
    "streamingllm 512": {"policy": "streamingllm", "budget": 512},
}


def hold(llama: Llama, seed: int) -> dict[str, Any]:
    """Hold one talk; say what was remembered and what every turn read."""
    text, question, number = make_prompt(llama, seed, N_TEXT, random.Random(seed).random())
    session = ChatSession(llama)

    def say(words: str, **documents: Any) -> str:
        return "".join(session.send(words, **documents))

    first = say(question, documents=[text])
    n_events = session.report.kv["events"]
    n_read, n_new = 0, 0
    for other, paragraph in zip(QUESTIONS, write_paragraphs(1000 + seed), strict=False):
        message = f"{paragraph}\n\n{other}"
        say(message)
        n_read += session.report.timings["prompt_n"]
        n_new += len(llama.native.tokenize(message, add_special=False))
    last = say(question)
    return {
        "first": number in first,
        "last": number in last,
        "answer": last,
        "seen": session.report.kv["seen"],
        "events": session.report.kv["events"] - n_events,
        "read": n_read,
        "new": n_new,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return a line for each cache."""
    cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        cells[row["cell"]].append(row)
    head = [
        "cache", "known at first", "of these known at last (95 %)", "tokens seen", "evictions between",
        "tokens read a turn, of these new",
    ]  # fmt: skip
    lines = []
    for name, lot in cells.items():
        knew = [row for row in lot if row["first"]]
        seen, events, read, new = (
            sum(row[key] for row in lot) / len(lot) for key in ("seen", "events", "read", "new")
        )
        lines.append(
            [
                name,
                f"{len(knew)}/{len(lot)}",
                found_text(knew, "last"),
                f"{seen:,.0f}",
                f"{events:.1f}",
                f"{read / len(QUESTIONS):.0f}, {new / len(QUESTIONS):.0f}",
            ]
        )
    return write_table(head, lines, n_left=len(head))


def main() -> None:
    """Hold the same talks with each cache, or print the table of a log."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seed", type=int, default=500)
    parser.add_argument("--cache", action="append", choices=CACHES, help="repeatable")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("talk.jsonl"))
    parser.add_argument("--table", type=Path, help="print the table of this log")
    options = parser.parse_args()
    log = Log(options.table or options.json, commit=find_commit())
    if not options.table:
        for name in options.cache or CACHES:
            with Llama(
                options.model, temp=0.0, n_predict=32, n_threads=options.threads, **CACHES[name]
            ) as llama:
                for seed in range(options.seed, options.seed + options.samples):
                    sample = {"cell": name, "seed": seed}
                    if sample not in log:
                        log.add(sample | hold(llama, seed))
    print(table(log.rows()))


if __name__ == "__main__":
    main()
