"""Needle in prose: a sentence with a 7-digit number, plain chat template, no answer prefix.

python benchmarks/needle.py --tokens 1500 --budget 256 --budget 128 --full
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

from prose import document

from restkv_local import ChatSession, Llama

THINGS = (
    "red lighthouse", "silver telescope", "northern ferry", "oak cabinet", "glass bridge",
    "iron anchor", "blue schooner", "stone archive", "copper still", "tall windmill",
)  # fmt: skip


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


def ask(llama: Llama, depth: float, prompt: tuple[str, str, str]) -> dict[str, Any]:
    """Ask in a fresh session; return what the table and the log need."""
    text, question, number = prompt
    session = ChatSession(llama)
    answer = "".join(session.send(question, documents=[text]))
    row = {"depth": depth, "hit": number in answer, "number": number, "answer": answer}
    return row | session.report.timings | session.report.kv


def summarise(name: str, rows: list[dict[str, Any]]) -> str:
    """Return one line of the table."""
    prompt_ms = sum(row["prompt_ms"] for row in rows)

    def share(*keys: str) -> str:
        return f"{100 * sum(row[key] for row in rows for key in keys) / prompt_ms:.1f}"

    cells = [
        name,
        rows[0]["prompt_n"],
        f"{sum(row['hit'] for row in rows)}/{len(rows)}",
        f"{statistics.median(row['prompt_per_second'] for row in rows):.0f}",
        share("score_ms", "compact_ms"),
        share("guide_ms"),
        f"{rows[0]['bytes'] / 2**20:.0f} / {rows[0]['bytes_full'] / 2**20:.0f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Ask the same prompts with each cache and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--budget", action="append", help="repeatable")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", action="append", help="repeatable")
    parser.add_argument("--full", action="store_true", help="also with the full cache")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other option"
    )
    parser.add_argument("--json", type=Path, help="append one line a sample")
    options = parser.parse_args()

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
    for policy in options.policy or ["restkv"]:
        for budget in options.budget or ["256"]:
            cells.append((f"{policy} {budget}", {"policy": policy, "budget": budget, **extra}))

    depths = [(i + 0.5) / options.samples for i in range(options.samples)]
    prompts: list[tuple[str, str, str]] = []
    print("| cache | tokens | found | prefill t/s | score+compact % | guide % | KV MiB / full |")
    print("|---|---|---|---|---|---|---|")
    for name, settings in cells:
        with Llama(options.model, temp=0.0, n_predict=32, **settings) as llama:
            if not prompts:
                for i, depth in enumerate(depths):
                    prompts.append(make_prompt(llama, options.seed + i, options.tokens, depth))
            rows = [ask(llama, *pair) for pair in zip(depths, prompts, strict=True)]
        print(summarise(name, rows), flush=True)
        if options.json:
            with options.json.open("a") as file:
                for row in rows:
                    file.write(json.dumps({"cell": name, "tokens": options.tokens} | row) + "\n")


if __name__ == "__main__":
    main()
