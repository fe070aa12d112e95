"""Every cell of the grid is asked every sample; what is in the log is not asked again."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restkv_local.engine import Engine
from restkv_local.errors import ConfigError, InputError
from restkv_local.evaluation.answering import write_answer
from restkv_local.evaluation.framing import Framing
from restkv_local.evaluation.grid import FULL, Cell, make_cells
from restkv_local.evaluation.log import EvalLog, read_log
from restkv_local.evaluation.reading import Passage, Reader, group_cells
from restkv_local.evaluation.report import write_report
from restkv_local.evaluation.runner import check_tasks
from restkv_local.native import NativeContext
from tests import builders
from tests.evaluation.conftest import SMALL, grid
from tests.evaluation.evaluation_helpers import make_sample, write_jsonl

pytestmark = pytest.mark.native

WIDE = grid("full restkv h2o kvzip", "uniform global", "64 25%", "bounded full")


def text_of(records):
    return [(str(r.cell), r.item.id, r.prediction, r.scores) for r in records]


# Readings


def test_cells_of_one_reading_answer_as_with_readings_of_their_own(tiny, evaluate):
    llama = tiny()
    together = evaluate(llama, "niah", log="a.jsonl", cells=WIDE, n=1)
    assert not together.lines
    for cell in WIDE:
        (alone,) = evaluate(llama, "niah", log=f"{cell}.jsonl", cells=[cell], n=1).records
        (shared,) = [record for record in together.records if record.cell == cell]
        assert (alone.prediction, alone.scores) == (shared.prediction, shared.scores)
        for name in ("budget", "kept", "seen", "evicted", "events", "policy", "allocation"):
            assert alone.kv[name] == shared.kv[name], (cell, name)


def test_what_can_share_a_reading_does_and_the_full_cache_comes_first():
    cells = grid("restkv full snapkv", "uniform", "25% 10MiB", "bounded full")
    groups = group_cells(cells)
    assert groups[0][0] == FULL
    assert [str(cell) for cell in groups[0][1:]] == [
        "restkv uniform full 25%",
        "snapkv uniform full 25%",
    ]
    assert [len(group) for group in groups] == [3, 1, 1, 1, 1, 1, 1]
    assert sorted(str(cell) for group in groups for cell in group) == sorted(map(str, cells))
    assert group_cells([FULL]) == [[FULL]]
    assert group_cells(grid("full restkv"))[0][0] == FULL


def test_the_texts_are_read_as_often_as_needed(tiny, evaluate, monkeypatch):
    read, lengths = Engine.read, []
    monkeypatch.setattr(
        Engine,
        "read",
        lambda self, tokens, **o: (lengths.append(len(tokens)), read(self, tokens, **o)),
    )
    evaluate(tiny(), "niah", cells=grid("full restkv snapkv", budgets="64 25%"), n=1)
    assert len(lengths) == 1
    evaluate(tiny(), "niah", log="b", cells=grid("full restkv", positions="original compact"), n=1)
    assert len(lengths) == 3


def test_budgets_are_kept_whatever_their_form(tiny, evaluate):
    cells = grid(budgets="64 25% 1MiB", prefills="full bounded")
    records = evaluate(tiny(), "niah", cells=cells, n=1, question="unknown").records
    for record in records:
        rows = {"64": 64, "25%": record.tokens["read"] // 4}.get(record.cell.budget)
        if rows is not None:
            assert record.kv["budget"] == rows
            # At most a chunk above: the question and the answer follow the cut.
            assert record.kv["kept"] <= rows + record.tokens["after"] + record.tokens["written"]
        assert record.kv["prefill"] == record.cell.prefill


def test_a_cut_comes_before_an_unknown_question_and_a_known_one_is_read_first(tiny, evaluate):
    llama = tiny()
    (aware,) = evaluate(llama, "niah", n=1).records
    (unknown,) = evaluate(llama, "niah", n=1, question="unknown").records
    assert aware.tokens["after"] == 0
    assert unknown.tokens["after"] > 5
    assert aware.tokens["read"] == unknown.tokens["read"] + unknown.tokens["after"]
    assert (aware.item.question, unknown.item.question) == ("aware", "unknown")
    assert aware.item.prompt_hash == unknown.item.prompt_hash


@pytest.mark.parametrize(("n_tokens", "n_evictions"), [(100, 1), (300, 2), (700, 5)])
@pytest.mark.parametrize("policy", ["restkv", "fifo"])
def test_bounded_prefill_ends_at_the_budget(tiny, policy, n_tokens, n_evictions):
    """Even of a text that the cache could hold: with the chunk's and the probe's rows it has more than the budget."""
    tokens = np.random.default_rng(0).integers(10, 250, n_tokens).tolist()
    ((_, (rows, n_events), _),) = Reader(tiny(), SMALL).measure(
        grid(policy, budgets="64", prefills="bounded"),
        Passage(tokens=tokens, n_more=4, guide=tokens[-12:]),
        lambda cell, engine, logits: (engine.rows.mean, engine.counters.events),
        lambda cell, error: pytest.fail(str(error)),
    )
    assert rows == 64
    assert n_events == n_evictions or policy == "fifo"  # what is at the budget is not cut again


def test_a_probe_before_an_eviction_does_not_change_what_is_said_next(tiny):
    """KVzip reads probes when it evicts: the answer goes on from the prompt, not from them."""
    llama = tiny()
    tokens = np.random.default_rng(0).integers(10, 250, 300).tolist()
    found = {}
    for policy in ("kvzip", "fifo"):
        measured = Reader(llama, SMALL).measure(
            grid(policy, budgets="64"),
            Passage(tokens=tokens, n_more=4),
            lambda cell, engine, logits: logits,
            lambda cell, error: pytest.fail(str(error)),
        )
        ((_, found[policy], _),) = measured
    np.testing.assert_array_equal(found["kvzip"], found["fifo"])


def test_where_a_copy_does_not_fit_every_cell_reads_for_itself(tiny, evaluate, monkeypatch):
    llama = tiny()
    cells = grid("full restkv snapkv")
    shared = evaluate(llama, "niah", cells=cells, n=1)
    monkeypatch.setattr(Reader, "_can_share", lambda self, passage: False)
    alone = evaluate(llama, "niah", log="b", cells=cells, n=1)
    assert text_of(alone.records) == text_of(shared.records)
    assert len({record.timings["read"] for record in shared.records}) == 1
    assert len({record.timings["read"] for record in alone.records}) == 3


# Prompts


def test_no_space_or_line_break_of_a_sample_is_lost(tiny):
    trims = builders.CHATML.replace("message['content']", "message['content'] | trim")
    llama = tiny(builders.llama(vocab="bpe", metadata={"tokenizer.chat_template": trims}))
    sample = make_sample("x", context=" \n two \n\n", question="what?\n\n", answer_prefix=" It is")
    prompt = Framing(llama).frame(sample)
    assert prompt.context == "<|im_start|>user\n \n two \n\n"
    assert prompt.ending == "what?\n\n<|im_end|>\n<|im_start|>assistant\n It is"
    plain = Framing(llama, use_template=False)
    assert (plain.has_template, plain.frame(sample).context) == (False, " \n two \n\n")
    bare = make_sample("x", context="c", question="q", uses_template=False)
    assert Framing(llama).frame(bare).ending == "q"
    assert Framing(llama).count_pinned(Framing(llama).frame(bare)) == 0


def test_a_model_without_a_template_reads_plain_text(tiny, evaluate):
    llama = tiny(builders.llama(vocab="bpe", metadata={"tokenizer.chat_template": None}))
    framing = Framing(llama)
    assert not framing.has_template
    assert evaluate(llama, "niah", n=1).records


def test_a_template_that_hides_the_text_is_one_line(tiny):
    llama = tiny(builders.llama(vocab="bpe", metadata={"tokenizer.chat_template": "hello"}))
    with pytest.raises(InputError, match=r"shows a user's text 0 times.*--no-template"):
        Framing(llama)


def test_the_end_of_the_prompt_guides_where_there_is_no_question(tiny):
    llama = tiny()
    framing = Framing(llama)
    sample = make_sample("x", context="the answer is in the code " * 10, question=" ")
    prompt = framing.frame(sample)
    tokens = framing.tokenize(prompt)
    assert framing.guide(prompt, tokens, llama.config) == tokens[-16:]
    asked = framing.frame(make_sample("x", context="the answer ", question="what?"))
    guide = framing.guide(asked, [], llama.config)
    ending = llama.native.tokenize(asked.ending, add_special=False)
    assert guide == ending[:8] + ending[-8:]


def test_a_prompt_fits_its_length_with_template_and_answer(tiny, evaluate):
    for length in (300, 500):
        for record in evaluate(tiny(), "niah", "ruler-vt", lengths=[length], n=1).records:
            assert record.tokens["read"] + 30 <= length


def test_a_stop_ends_an_answer_and_does_not_belong_to_it(tiny, monkeypatch):
    llama = tiny()
    engine = Reader(llama, SMALL).read([FULL], Passage(tokens=[20, 21, 22], n_more=20))
    logits = llama.native.logits().copy()
    text, n = write_answer(engine, logits, [], 12)
    assert (n, engine.counters.seen) == (12, 3 + 11)
    engine.clear()
    engine.read([20, 21, 22])
    stopped, n_stopped = write_answer(engine, logits, [], 12, stop=[text[4:6]])
    assert stopped == text[: text.index(text[4:6])]
    assert n_stopped < n


def test_a_token_that_ends_an_answer_does_so_only_as_a_whole_and_not_at_first(tiny):
    llama = tiny()
    engine = Reader(llama, SMALL).read([FULL], Passage(tokens=[20, 21, 22], n_more=20))
    native = llama.native
    logits = native.logits().copy()
    first = int(np.argmax(logits))
    second = int(np.argsort(-logits)[1])
    piece = native.piece(first).decode()
    assert write_answer(engine, logits, [], 4, stop_tokens=[piece]) == ("", 0)
    assert write_answer(engine, logits, [], 1, stop_tokens=[piece + "?"]) == (piece, 1)
    text, n = write_answer(engine, logits, [], 1, stop_tokens=[piece], must_begin=True)
    assert (text, n) == (native.piece(second).decode(), 1)


# Going on


def test_a_second_run_measures_nothing_anew(tiny, evaluate, monkeypatch):
    llama = tiny()
    first = evaluate(llama, "niah", "ppl", "reconstruction", n_scored=4)
    before = first.path.read_bytes()
    monkeypatch.setattr(Engine, "read", lambda *args, **kwargs: pytest.fail("it was read again"))
    again = evaluate(llama, "niah", "ppl", "reconstruction", n_scored=4)
    assert text_of(again.records) == text_of(first.records)
    assert first.path.read_bytes() == before
    assert again.steps[-1] == first.steps[-1] == (6, 6)


def test_a_larger_grid_adds_what_is_missing(tiny, evaluate):
    llama = tiny()
    first = evaluate(llama, "niah")
    before = first.path.read_bytes()
    more = evaluate(llama, "niah", cells=grid("restkv snapkv"), seeds=[42, 43])
    assert first.path.read_bytes().startswith(before)
    assert len(more.records) == 8
    content = read_log(more.path)
    assert [len(content.records), len(content.runs)] == [8, 2]
    assert len({(r.item.id, str(r.cell)) for r in content.records}) == 8


def test_a_sample_that_has_changed_is_refused_and_not_scored_by_what_it_was(
    tiny, evaluate, tmp_path
):
    """The log knew it by its prompt alone: a corrected reference kept the score of the wrong one."""
    llama = tiny()

    def ask(word):
        write_jsonl(tmp_path / "lambada" / "test.jsonl", {"text": f"It came in. It was the {word}"})
        return evaluate(llama, "lambada", data=tmp_path, lengths=[None], cells=[FULL])

    first = ask("code")
    before = first.path.read_bytes()
    with pytest.raises(InputError, match=r"log\.jsonl has scores of lambada 1 with .*name another"):
        ask("answer")
    assert first.path.read_bytes() == before
    assert text_of(ask("code").records) == text_of(first.records)


@pytest.mark.parametrize("stage", ["decode", "score"])
def test_ctrl_c_loses_nothing(tiny, evaluate, monkeypatch, stage):
    llama = tiny()
    whole = evaluate(llama, "niah", log="whole", n=3)
    call, calls = getattr(NativeContext, stage), []

    def interrupt(self, *args, **kwargs):
        calls.append(stage)
        if len(calls) == {"decode": 60, "score": 2}[stage]:
            raise KeyboardInterrupt
        return call(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(NativeContext, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate(llama, "niah", n=3)
    path = whole.path.parent / "log.jsonl"
    n_kept = len(read_log(path).records)
    assert 0 < n_kept < 3
    again = evaluate(llama, "niah", n=3)
    assert text_of(again.records) == text_of(whole.records)
    assert len(read_log(path).records) == 3


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_log_cut_anywhere_is_filled_up_again(data, finished):
    """Killed while it wrote: at any byte."""
    llama, run, whole = finished
    content = whole.path.read_bytes()
    n = data.draw(st.integers(0, len(content)))
    (whole.path.parent / "cut.jsonl").write_bytes(content[:n])
    again = run(llama, "niah", log="cut.jsonl", n=1)
    assert again.log.was_cut == (n > 0 and content[n - 1 : n] != b"\n")
    assert text_of(again.records) == text_of(whole.records)
    assert len(read_log(again.path).records) == 1


@pytest.fixture
def finished(tiny, evaluate):
    llama = tiny()
    return llama, evaluate, evaluate(llama, "niah", n=1)


def test_a_log_that_cannot_be_written_ends_the_run(tiny, evaluate, monkeypatch):
    """What is measured for hours and not kept is worth nothing."""

    def fail(self, record):
        raise InputError("no space left on device; name another log")

    monkeypatch.setattr(EvalLog, "add", fail)
    with pytest.raises(InputError, match="no space left"):
        evaluate(tiny(), "niah", "ppl")


# What cannot be done


def test_a_cell_that_cannot_be_is_one_line_and_the_others_go_on(tiny, evaluate):
    cells = grid("restkv h2o", "uniform cake", "25% 12", "full bounded")
    result = evaluate(tiny(), "niah", cells=cells, n=1)
    assert {str(r.cell) for r in result.records} == {
        "restkv uniform full 25%", "restkv cake full 25%", "h2o uniform full 25%",
        "restkv uniform bounded 25%", "restkv cake bounded 25%", "h2o uniform bounded 25%",
    }  # fmt: skip
    assert len(result.lines) == len(cells) - len(result.records)
    assert any(
        line.startswith("h2o cake full 25%: allocation='cake' splits by attention")
        for line in result.lines
    )
    assert all("\n" not in line for line in result.lines)


def test_rows_that_do_not_hold_what_must_stay_are_one_line_each(tiny, evaluate):
    """A system prompt is pinned: only the prompt tells that the rows are too few."""
    cells = grid(budgets="14 64", prefills="full bounded")
    result = evaluate(tiny(), "niah", cells=cells)
    assert {str(r.cell) for r in result.records} == {
        "restkv uniform full 64", "restkv uniform bounded 64",
    }  # fmt: skip
    assert len(result.lines) == 2  # not once a sample
    assert all("budget must be at least n_sink + n_pinned" in line for line in result.lines)
    assert result.steps[-1] == (8, 8)


def test_rows_that_are_too_few_leave_the_others_of_their_reading_alone(tiny, evaluate):
    """The whole cache, which has no budget, was refused with them."""
    result = evaluate(tiny(), "niah", cells=grid("full restkv", budgets="14"))
    assert {str(record.cell) for record in result.records} == {"full"}
    (line,) = result.lines
    assert line.startswith("niah at 400 tokens, restkv uniform full 14: budget must be at least")


def test_a_percentage_holds_what_must_stay_however_it_is_read(tiny, evaluate):
    cells = grid("restkv h2o", budgets="1%", prefills="full bounded")
    result = evaluate(tiny(), "niah", cells=cells)
    assert not result.lines
    (rows,) = {record.kv["budget"] for record in result.records}
    assert 13 < rows < 40


def test_positions_that_a_model_cannot_have_are_one_line(tiny, evaluate):
    llama = tiny(builders.gemma2(n_swa=64))
    result = evaluate(llama, "niah", cells=grid(positions="compact", prefills="bounded"))
    assert not result.records
    assert "cannot run here" in result.lines[0]


def test_a_model_whose_cache_cannot_be_copied_reads_for_every_cell(tiny, evaluate):
    """Sliding windows: each cell needs a reading of its own there."""
    llama = tiny(builders.gemma2(n_swa=64))
    cells = grid("full restkv snapkv", prefills="bounded full")
    result = evaluate(llama, "niah", "ppl", "reconstruction", cells=cells, n=1, n_scored=4)
    assert (len(result.records), result.lines) == (5 + 5 + 2, [])


def test_a_task_without_its_data_is_one_line_and_the_others_go_on(tiny, evaluate, tmp_path):
    result = evaluate(tiny(), "lambada", "niah", "longbench-trec", n=1)
    assert [line.split(":")[0] for line in result.lines] == [
        "lambada at 400 tokens", "longbench-trec at 400 tokens",
    ]  # fmt: skip
    assert [record.item.task for record in result.records] == ["niah"]


def test_a_length_too_short_is_one_line(tiny, evaluate):
    result = evaluate(tiny(), "niah", lengths=[50, 400], n=1)
    assert "niah at 50 tokens: niah cannot be 50 tokens long" in result.lines[0]
    assert len(result.records) == 1


def test_a_damaged_file_ends_its_task_where_it_is(tiny, evaluate, tmp_path):
    path = write_jsonl(tmp_path / "lambada" / "test.jsonl", {"text": "the answer is in the code"})
    path.write_text(path.read_text() + "{\n")
    (line,) = evaluate(tiny(), "lambada", data=tmp_path, lengths=[None], n=None).lines
    assert "test.jsonl:2 is not JSON" in line


def test_samples_of_a_file_are_counted_as_they_come(tiny, evaluate, tmp_path):
    texts = [{"text": f"the number is {i} and the answer is code"} for i in range(3)]
    write_jsonl(tmp_path / "lambada" / "test.jsonl", *texts)
    cells = grid("full random", budgets="16", prefills="full bounded")
    result = evaluate(tiny(), "lambada", data=tmp_path, lengths=[None], n=None, cells=cells)
    assert not result.lines
    assert len(result.records) == 9
    assert result.steps[-1] == (9, 9)
    assert {tuple(r.scores) for r in result.records} == {("last_word",)}


def test_what_another_seed_asked_is_not_counted_again(tiny, evaluate, tmp_path):
    """Two seeds of a file that is read whole gave every sample twice, and intervals too narrow."""
    texts = [{"text": f"the number is {i} and the answer is code"} for i in (1, 2, 2)]
    write_jsonl(tmp_path / "lambada" / "test.jsonl", *texts)
    asked = {"data": tmp_path, "lengths": [None], "seeds": [1, 2], "cells": [FULL]}
    llama = tiny()
    for n in (None, 9):
        result = evaluate(llama, "lambada", log=f"{n}.jsonl", n=n, **asked)
        assert [(r.item.id, r.item.seed) for r in result.records] == [("1", 1), ("2", 1), ("3", 1)]
        assert result.steps[-1] == (3, 3)
    alike = evaluate(llama, "niah-paper", log="p.jsonl", n=2, **(asked | {"lengths": [700]}))
    assert {record.item.seed for record in alike.records} == {1}


def test_what_a_log_has_by_another_seed_is_not_counted_again(tiny, evaluate, tmp_path):
    """A second run with another seed asked the same, and tables counted it twice."""
    write_jsonl(
        tmp_path / "lambada" / "test.jsonl", {"text": "the number is 1 and the answer is x"}
    )
    text = tmp_path / "text.txt"
    text.write_text("the number is code " * 100)
    asked = {"data": tmp_path, "lengths": [80], "n": 1, "cells": [FULL], "haystack": text}
    llama = tiny()
    tasks = ("lambada", "ppl")
    assert len(evaluate(llama, *tasks, seeds=[1], **asked).records) == 2
    again = evaluate(llama, *tasks, seeds=[2], **asked)
    assert not again.records
    assert again.lines == [
        f"{task} at 80 tokens: the log has the same samples by --seed 1; name that, or another log"
        for task in tasks
    ]
    both = evaluate(llama, *tasks, seeds=[2, 1], **asked)
    assert [record.item.task for record in both.records] == ["lambada"]
    assert both.lines == again.lines[1:]  # running text has one seed, the first


def test_samples_that_ruler_wrote_do_not_mix_with_our_own(tiny, evaluate, tmp_path):
    """Both counted as samples of one cell."""
    llama = tiny()
    asked = {"lengths": [600], "n": 1, "cells": [FULL]}
    evaluate(llama, "ruler-niah_single_1", **asked)
    path = tmp_path / "ruler/600/niah_single_1/validation.jsonl"
    write_jsonl(path, {"input": "x. What is the special magic number for x?", "outputs": ["1"]})
    with pytest.raises(InputError, match="with another prompt"):
        evaluate(llama, "ruler-niah_single_1", data=tmp_path, **asked)


def test_pieces_of_another_stride_are_refused(tiny, evaluate, tmp_path):
    """Pieces that overlap were averaged with those that do not."""
    text = tmp_path / "text.txt"
    text.write_text("the number is code " * 200)
    asked = {"lengths": [80], "n": 2, "cells": [FULL], "haystack": text, "n_scored": 8}
    llama = tiny()
    assert len(evaluate(llama, "ppl", **asked).records) == 2
    with pytest.raises(InputError, match="another --stride"):
        evaluate(llama, "ppl", stride=40, **asked)


def test_another_seed_draws_other_shots(tiny, evaluate, tmp_path):
    sums = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(9)]
    for name, lines in (("train", sums[1:]), ("test", sums[:1])):
        write_jsonl(tmp_path / "gsm8k" / f"{name}.jsonl", *lines)
    asked = {"data": tmp_path, "lengths": [None], "n": None, "cells": [FULL]}
    result = evaluate(tiny(), "gsm8k", seeds=[1, 2], **asked)
    assert [record.item.seed for record in result.records] == [1, 2]


def test_a_sample_without_context_is_told_and_the_next_one_asked(tiny, evaluate, tmp_path):
    """A passage of one sentence is all question; a vocabulary without BOS has nothing to read before it."""
    texts = [
        "the number is code",
        "the number is code. and the answer is in the number of the code",
    ]
    write_jsonl(tmp_path / "lambada" / "test.jsonl", *({"text": text} for text in texts))
    llama = tiny(builders.llama(vocab="bpe", metadata={"tokenizer.ggml.add_bos_token": False}))
    asked = {"data": tmp_path, "lengths": [None], "n": None, "cells": [FULL]}
    unknown = evaluate(llama, "lambada", question="unknown", **asked)
    assert unknown.lines == [
        "lambada, full: a sample has no text before its question; ask with --question aware"
    ]
    assert [record.item.id for record in unknown.records] == ["2"]
    assert unknown.steps[-1] == (2, 2)
    aware = evaluate(llama, "lambada", log="b", **asked)
    assert (len(aware.records), aware.lines) == (2, [])


def test_a_budget_written_in_two_ways_is_one_cell():
    cells = make_cells(["restkv"], ["uniform"], ["25%", "25.0 %", "064", "64"], ["full"], ["auto"])
    assert [cell.budget for cell in cells] == ["25%", "64"]
    (odd, other, size) = grid(budgets="0.1% 33.33% 512MiB")
    assert (odd.budget, other.budget, size.budget) == ("0.1%", "33.33%", "512MiB")


def test_needles_of_another_number_are_refused_by_what_decides_their_depths(tiny, evaluate):
    llama = tiny()
    evaluate(llama, "niah", n=2)
    with pytest.raises(InputError, match="of needles -n decides the depths"):
        evaluate(llama, "niah", n=3)


def test_names_of_no_task_are_refused():
    check_tasks(["niah", "ruler", "ppl", "reconstruction"])
    with pytest.raises(
        ConfigError,
        match=r"task must be one of needles, ruler.*ppl and reconstruction are tasks too",
    ):
        check_tasks(["niah", "nonsense"])


@pytest.mark.parametrize(
    "names",
    [
        {"policies": "x"},
        {"allocations": "x"},
        {"budgets": "x"},
        {"prefills": "x"},
        {"positions": "x"},
    ],
)
def test_names_of_no_cell_are_refused(names):
    with pytest.raises(ConfigError, match="x"):
        grid(**names)


def test_what_evicts_nothing_is_one_cell():
    cells = grid("full restkv", "uniform ada", "25% 50%", "full bounded")
    assert cells.count(FULL) == 1
    assert len(cells) == 1 + 8
    assert Cell("full", "uniform", "100%", "full", "auto") == FULL


# Families


def test_ruler_runs_whole_and_its_spread_is_told(tiny, evaluate, tmp_path):
    data = tmp_path / "ruler" / "700"
    for i, name in enumerate(("vt", "cwe")):
        question = {
            "vt": "Question: Find all variables that are assigned the value 3.",
            "cwe": "Question: What are the 10 most common words in the above list?",
        }[name]
        write_jsonl(
            data / name / "validation.jsonl",
            *({"index": j, "input": f"the {'code ' * 100}{question} Answer: it is",
               "outputs": ["<|im_end|>" if j == i else "a"]} for j in range(2)),
        )  # fmt: skip
    names = ("ruler-vt", "ruler-cwe", "ruler-niah_single_1")
    result = evaluate(tiny(), *names, data=tmp_path, lengths=[700], n=2, seeds=[1, 2])
    assert not result.lines
    assert {r.item.task for r in result.records} == set(names)
    report = write_report([read_log(result.path)])
    (head,) = [line for line in report.splitlines() if line.startswith("| policy")]
    assert head.endswith("| vt | cwe | niah_single_1 | mean | sd over tasks | sd over seeds |")


def test_records_are_lines_of_json(tiny, evaluate):
    result = evaluate(tiny(), "niah", n=1)
    head, run, line = map(json.loads, result.path.read_text().splitlines())
    assert head["kind"] == "restkv eval, version 1"
    assert run == {"run": {"name": "test"}}
    assert line["task"] == "niah"
    assert line["cell"]["policy"] == "restkv"
    assert len(line["prompt_hash"]) == 64
    assert set(line["scores"]) == {"substring", "rouge_1"}
    assert line["timings"]["read"] > 0
    assert line["timings"]["answer"] > 0
    assert line["kv"]["evicted"] > 0
    assert line["extra"] == {"depth": 50.0}
    assert isinstance(line["references"][0], str)
