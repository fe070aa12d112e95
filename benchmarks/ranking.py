"""Policies ranked on one model: the same readings, restored for every policy, allocation and budget.

Each prompt is read once with the full cache; then each policy evicts from that reading and the model goes on.

python benchmarks/ranking.py --task needle --samples 10 --json ranking.jsonl     # question read first
python benchmarks/ranking.py --task needle-unknown --samples 10 --json ranking.jsonl
python benchmarks/ranking.py --task text --samples 3 --json ranking.jsonl        # perplexity, KL divergence
python benchmarks/ranking.py --table ranking.jsonl

Tasks: needle, multikey (four needles, one asked), each also as -unknown (evicted before the question is known), text.
A run that was stopped goes on where it was; --json keeps what is done.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from measured import Log, found_text
from prose import document

from restkv_local import Llama
from restkv_local.allocators.registry import ALLOCATORS
from restkv_local.chat.chat_template import ChatTemplate
from restkv_local.config import DEFAULTS
from restkv_local.engine import Engine
from restkv_local.errors import ConfigError
from restkv_local.evaluation.answering import write_answer
from restkv_local.evaluation.likelihood import log_softmax
from restkv_local.evaluation.tasks.niah import THINGS
from restkv_local.markdown import write_table
from restkv_local.policies.base import Policy
from restkv_local.policies.registry import POLICIES, make_policy
from restkv_local.sequence import Snapshot
from restkv_local.version import find_commit

SHARES = (0.05, 0.10, 0.25, 0.50)
N_ANSWER = 24  # tokens: a sentence with a seven-digit number
N_SCORED = 128  # tokens of the text that are predicted after the eviction
KEY = ("task", "tokens", "seed", "policy", "allocation", "share")  # what a row of the log is of


@dataclass(frozen=True)
class Sample:
    """Tokens to read before the eviction and after it, and what must come out."""

    before: list[int]
    after: list[int]
    number: str | None


def needle_prompt(llama: Llama, seed: int, n_tokens: int, n_needle: int) -> tuple[str, str, str]:
    """Return a document with needles, a question about one of them and its number."""
    rng = random.Random(1000 + seed)
    things = rng.sample(THINGS, n_needle)
    numbers = [str(rng.randint(1_000_000, 9_999_999)) for _ in things]
    depths = [rng.random() for _ in things]
    n_words = int(n_tokens / 1.25)
    for _ in range(4):  # words to tokens: close in on the length
        parts = document(n_words, seed).split("\n\n")
        for thing, number, depth in zip(things, numbers, depths, strict=True):
            place = min(int(depth * len(parts)), len(parts) - 1)
            sentences = parts[place].split(". ")
            needle = f"The registration number of the {thing} is {number}"
            sentences.insert(len(sentences) // 2, needle)
            parts[place] = ". ".join(sentences)
        text = "\n\n".join(parts)
        n_words = int(n_words * n_tokens / len(llama.native.tokenize(text, add_special=False)))
    return text, f"What is the registration number of the {things[0]}?", numbers[0]


def make_sample(llama: Llama, task: str, seed: int, n_tokens: int) -> Sample:
    """Return what is read before and after the eviction."""
    if task == "text":
        names = sorted(topics)
        random.Random(seed).shuffle(names)
        manual = "\n\n".join(topics[name] for name in names[:60])
        text = llama.native.tokenize(manual, add_special=True)[: n_tokens + N_SCORED]
        return Sample(text[:n_tokens], text[n_tokens:], None)
    template = ChatTemplate(llama.native, llama.shape.name)
    n_needle = 4 if task.startswith("multikey") else 1
    text, question, number = needle_prompt(llama, seed, n_tokens, n_needle)
    rendered = template.render([{"role": "user", "content": f"{text}\n\n{question}"}])
    if not task.endswith("-unknown"):
        return Sample(template.tokenize(rendered, first=True), [], number)
    split = rendered.rindex(question)
    before = template.tokenize(rendered[:split], first=True)
    after = template.tokenize(rendered[split:], first=False)
    return Sample(before, after, number)


def log_probabilities(engine: Engine, sample: Sample) -> np.ndarray:
    """Log-probabilities of every token after each token of the continuation: (n, n_vocab)."""
    rows = []
    for token in sample.after[:-1]:
        engine.step(token)
        rows.append(log_softmax(engine.native.logits()))
    return np.stack(rows)


def judge(
    engine: Engine, sample: Sample, logits: np.ndarray, full: np.ndarray | None
) -> dict[str, Any]:
    """Go on from the evicted cache; say how it went."""
    if sample.number is not None:
        text, _ = write_answer(engine, logits, sample.after, N_ANSWER, ())
        return {"hit": sample.number in text, "answer": text}
    found = log_probabilities(engine, sample)
    target = np.arange(len(found)), sample.after[1:]
    result = {"nll": -float(found[target].mean())}
    if full is not None:
        result["kl"] = float((np.exp(full) * (full - found)).sum(axis=-1).mean())
        result["same_top"] = float((full.argmax(-1) == found.argmax(-1)).mean())
    return result


def cells(policies: list[str], allocations: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of the grid."""
    for allocation in allocations:
        for policy in policies:
            yield policy, allocation


def run(options: argparse.Namespace) -> None:
    """Fill in what the log lacks."""
    log = Log(options.json, commit=find_commit())
    done = {tuple(row[key] for key in KEY) for row in log.rows()}
    policies = options.policy or [name for name in POLICIES if POLICIES[name].evicts]
    window = "" if options.n_obs == DEFAULTS.n_obs else f", window {options.n_obs}"
    allocations = options.allocation or ["uniform"]
    with Llama(
        options.model,
        temp=0.0,
        prefill="full",
        allocation="global",
        also_track=("sum", "last_use", "repeat", "queries"),
        budget=2048,
        n_obs=options.n_obs,
        n_threads=options.threads,
    ) as llama:
        for seed in range(options.seed, options.seed + options.samples):
            grid = [
                (policy, allocation, share)
                for policy, allocation in cells(policies, allocations)
                for share in SHARES
                if (options.task, options.tokens, seed, policy + window, allocation, share)
                not in done
            ]
            if grid:
                sample = make_sample(llama, options.task, seed, options.tokens)
                for row in rank(llama, sample, grid):
                    prompt = {"task": options.task, "tokens": options.tokens, "seed": seed}
                    if row["policy"] != "full":
                        row["policy"] += window
                    log.add(prompt | row)


def rank(
    llama: Llama, sample: Sample, grid: list[tuple[str, str, float]]
) -> Iterator[dict[str, Any]]:
    """Read once, then evict by every rule of the grid and go on; yield a row for each."""
    engine = llama.engine
    n = len(sample.before)
    engine.open(n, len(sample.after) + N_ANSWER, 0)
    engine.clear()
    engine.read(sample.before, evict=False)
    logits = llama.native.logits().copy()
    saved: Snapshot = engine.save()
    full = log_probabilities(engine, sample) if sample.number is None else None
    engine.restore(saved)
    engine.use(policy="full", allocation="uniform")
    row = {"policy": "full", "allocation": "uniform", "share": 1.0}
    yield row | judge(engine, sample, logits, full)
    repeated: Snapshot | None = None
    for policy, allocation, share in grid:
        chosen = build(policy)
        repeats = chosen.track == "repeat"
        engine.restore(repeated if repeats and repeated else saved)
        try:
            engine.use(policy=chosen, allocation=allocation, budget=round(share * n))
        except ConfigError:
            continue  # cake wants a policy that observes attention
        if repeats and repeated is None:  # once for all cells
            engine.repeat()
            repeated = engine.save()
        engine.evict()
        row = {"policy": policy, "allocation": allocation, "share": share}
        yield row | judge(engine, sample, logits, full)


def build(spelling: str) -> Policy:
    """Return a policy; knobs may follow its name, as in ``restkv:reduction=mean,kernel=5``."""
    name, _, knobs = spelling.partition(":")
    values = {}
    for knob in filter(None, knobs.split(",")):
        key, _, value = knob.partition("=")
        values[key] = json.loads(value) if value[:1] in "0123456789tf" else value
    return replace(make_policy(name), **values)


def cell_text(rows: list[dict[str, Any]]) -> str:
    """One cell of the table."""
    if "hit" in rows[0]:
        return found_text(rows)
    kl = [row["kl"] for row in rows]
    perplexity = math.exp(sum(row["nll"] for row in rows) / len(rows))
    return f"{sum(kl) / len(kl):.3f} ({perplexity:.1f})"


def tables(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table a task: hits with 95 % intervals, or KL divergence with perplexity."""
    by_task: dict[str, dict[tuple[str, str], dict[float, list[dict[str, Any]]]]] = {}
    for row in rows:
        task = by_task.setdefault(row["task"], defaultdict(lambda: defaultdict(list)))
        task[row["policy"], row["allocation"]][row["share"]].append(row)
    lines = []
    for task, lists in by_task.items():
        shares = sorted({share for by_share in lists.values() for share in by_share if share < 1})
        what = "KL to the full cache (perplexity)" if task == "text" else "found (95 % interval)"
        lines += ["", f"### {task}: {what}", ""]
        full = lists.pop(("full", "uniform"), None)
        if full:
            seen = {(row["tokens"], row["seed"]): row for row in full[1.0]}
            lines += [f"Full cache: {cell_text(list(seen.values()))}", ""]

        def merit(item: tuple[Any, dict[float, list[dict[str, Any]]]]) -> float:
            every = [row for cell in item[1].values() for row in cell]
            return -sum(row.get("hit", -row.get("kl", 0.0)) for row in every) / len(every)

        head = ["policy", "allocation", *(f"{share:.0%}" for share in shares)]
        found = [
            [*names, *(cell_text(cell[share]) if share in cell else "" for share in shares)]
            for names, cell in sorted(lists.items(), key=merit)
        ]
        lines.append(write_table(head, found, n_left=len(head)))
    return "\n".join(lines[1:])


def main() -> None:
    """Fill the log or print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument(
        "--task",
        default="needle",
        choices=["needle", "needle-unknown", "multikey", "multikey-unknown", "text"],
    )
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", action="append", help="repeatable; NAME or NAME:KNOB=VALUE,...")
    parser.add_argument("--allocation", action="append", choices=ALLOCATORS, help="repeatable")
    parser.add_argument("--n-obs", type=int, default=DEFAULTS.n_obs, help="queries that score")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("ranking.jsonl"))
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of these logs")
    options = parser.parse_args()
    if options.table:
        print(tables([row for path in options.table for row in Log(path).rows()]))
    else:
        run(options)


if __name__ == "__main__":
    main()
