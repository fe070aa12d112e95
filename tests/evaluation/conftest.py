"""A tiny model, and a runner that keeps its log in the test's folder."""

from types import SimpleNamespace

import pytest

from restkv_local import Llama
from restkv_local.evaluation.grid import make_cells
from restkv_local.evaluation.log import EvalLog
from restkv_local.evaluation.runner import EvalPlan, run_eval
from tests import builders

SMALL = {"n_recent": 8, "n_obs": 8, "n_guide": 16, "n_ubatch": 64, "kernel": 5, "n_threads": 1}


@pytest.fixture
def tiny(tmp_path):
    """Open a tiny model; freed after the test."""
    opened = []

    def open_(model=None):
        path = (model or builders.llama(vocab="bpe")).write(tmp_path / f"m{len(opened)}.gguf")
        opened.append(Llama(path, **SMALL))
        return opened[-1]

    yield open_
    for llama in opened:
        llama.close()


def grid(
    policies="restkv", allocations="uniform", budgets="25%", prefills="full", positions="auto"
):
    return make_cells(
        *(names.split() for names in (policies, allocations, budgets, prefills, positions))
    )


@pytest.fixture
def evaluate(tmp_path):
    """Run a plan and return its result with the lines and the steps it told."""

    def run(llama, *tasks, log="log.jsonl", on_progress=lambda progress: None, **plan):
        lines, steps = [], []

        def step(progress):
            steps.append((progress.done, progress.total))
            on_progress(progress)

        settings = {name: value for name, value in SMALL.items() if name != "n_threads"}
        kept = EvalLog(tmp_path / log, settings, {"name": "test"})
        plan = {"cells": grid(), "lengths": [400], "n": 2, **plan}
        result = run_eval(
            llama,
            EvalPlan(tasks=tasks, **plan),
            SMALL,
            kept,
            on_progress=step,
            on_failure=lines.append,
        )
        assert lines == result.failures
        return SimpleNamespace(
            records=result.records, lines=lines, steps=steps, path=tmp_path / log, log=kept
        )

    return run
