"""The order of cells, and which of them are measured."""

from collections import Counter

import pytest

from restkv_local.bench.caches import Cache
from restkv_local.bench.log import BenchLog, read_bench_log
from restkv_local.bench.runner import BenchPlan, run_bench


@pytest.fixture
def plan():
    caches = [Cache(name, {"budget": 64}, shifts=name == "b") for name in "abc"]
    return BenchPlan(
        model="m.gguf", caches=caches, depths=(10, 20), n_repetitions=4, n_prompt=3, n_gen=2
    )


class Recorder:
    """Takes the place of the child process: what is asked for, in order."""

    def __init__(self, stop_after=1000, fails_at=20):
        self.cells = []
        self.stop_after = stop_after
        self.fails_at = fails_at

    def __call__(self, cell):
        if len(self.cells) == self.stop_after:
            raise KeyboardInterrupt
        self.cells.append(cell)
        return (
            {"error": "no"} if cell.depth == self.fails_at else {"result": {"n": len(self.cells)}}
        )


def test_columns_of_a_row_stand_together_and_take_turns(plan):
    order = plan.order()
    assert len(order) == len({(r, d, c.name) for r, d, c in order}) == 4 * 2 * 3
    rows = [order[i : i + 3] for i in range(0, len(order), 3)]
    for row in rows:
        assert len({(repetition, depth) for repetition, depth, _ in row}) == 1
        assert {cache.name for _, _, cache in row} == set("abc")
    firsts = Counter(row[0][2].name for row in rows[:6])
    assert set(firsts.values()) == {2}


def test_every_cell_is_measured_as_planned(plan):
    run = Recorder()
    said = []
    samples = run_bench(plan, BenchLog(None, {}), commit="abc", run=run, on_cell=said.append)
    assert [s.key for s in samples] == [(c.name, d, r) for r, d, c in plan.order()]
    assert {sample.commit for sample in samples} == {"abc"}
    assert all((s.result is None) == (s.depth == 20) == (s.error == "no") for s in samples)
    assert {(cell.n_prompt, cell.n_gen, cell.model) for cell in run.cells} == {(3, 2, "m.gguf")}
    assert sum(cell.shifts for cell in run.cells) == 8
    assert said[0] == "1/24: a @ d10, round 1"


@pytest.mark.parametrize("n", [0, 1, 7, 23])
def test_a_run_that_was_stopped_goes_on_where_it_was(plan, tmp_path, n):
    path = tmp_path / "log.jsonl"
    first, second = Recorder(stop_after=n, fails_at=None), Recorder(fails_at=None)
    with pytest.raises(KeyboardInterrupt):
        run_bench(plan, BenchLog(path, {}), run=first)
    samples = run_bench(plan, BenchLog(path, {}), run=second)
    assert first.cells + second.cells == [cell for cell in _all_cells(plan)]
    assert len(samples) == 24
    third = Recorder()
    assert run_bench(plan, BenchLog(path, {}), run=third) == samples
    assert third.cells == []


def _all_cells(plan):
    run = Recorder()
    run_bench(plan, BenchLog(None, {}), run=run)
    return run.cells


def test_what_failed_is_tried_again_and_the_last_try_counts(plan, tmp_path):
    """Memory may be there next time; the log said the old reason for ever."""
    path = tmp_path / "log.jsonl"
    run_bench(plan, BenchLog(path, {}), run=Recorder())
    again = Recorder()
    samples = run_bench(plan, BenchLog(path, {}), run=again)
    assert {cell.depth for cell in again.cells} == {20}
    assert len(again.cells) == sum(sample.result is None for sample in samples) == 12
    run_bench(plan, BenchLog(path, {}), run=lambda cell: {"result": {"n": 1}})
    _, samples = read_bench_log(path)
    assert len(samples) == 24
    assert all(sample.error is None for sample in samples)
