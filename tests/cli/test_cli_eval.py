"""`eval`: tables on stdout, a log that goes on, one line for what cannot be done."""

import json
import sys
from functools import partial

import pytest
from restkv_local.cli.main import main

from restkv_local.evaluation.runner import TEXT_TASKS
from restkv_local.evaluation.tasks.registry import TASKS
from restkv_local.native import NativeContext
from tests import builders

SMALL = ("--n-recent", "8", "--n-obs", "8", "--n-guide", "16", "-ub", "64", "-t", "1", "-n", "1")


@pytest.fixture
def model(tmp_path):
    return builders.llama(vocab="bpe").write(tmp_path / "m.gguf")


@pytest.fixture
def evaluate(run_cli, model, tmp_path, monkeypatch):
    """Run ``restkv eval`` on the tiny model, 400 tokens long."""
    monkeypatch.chdir(tmp_path)
    return lambda *args: run_cli("eval", model, "--length", "400", *SMALL, *args, command=main)


def only_error(result, code=1):
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    return result.err


@pytest.mark.native
def test_a_table_shows_the_grid_and_the_log_keeps_it(evaluate, tmp_path):
    result = evaluate("--task", "niah", "--task", "ppl", "--scored", "4")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "## tiny llama, F32"
    assert "### needles, 400 tokens, question aware" in lines
    assert "### ppl, 400 tokens" in lines
    assert len([line for line in lines if line.startswith("| restkv | uniform | 25% |")]) == 2
    assert len([line for line in lines if line.startswith("| full | - | - |")]) == 2
    head, run, *records = map(json.loads, (tmp_path / "eval.jsonl").read_text().splitlines())
    conditions = head["conditions"]
    assert (conditions["model"], conditions["n_ubatch"]) == ("tiny llama", 64)
    assert len(conditions["fingerprint"]) == 64
    assert {"version", "llama_cpp", "python", "template"} <= set(conditions)
    assert {"commit", "system", "devices", "cpu_count", "started"} <= set(run["run"])
    assert run["run"]["arguments"]["tasks"] == ["niah", "ppl"]
    assert len(records) == 4


@pytest.mark.native
def test_a_log_names_files_and_no_folders(evaluate, tmp_path):
    text = tmp_path / "story.txt"
    text.write_text("The keeper lights the lamp at seven. " * 400)
    log = tmp_path / "eval.jsonl"
    result = evaluate("--task", "niah", "--haystack", str(text), "--log", str(log))
    assert result.code == 0
    assert str(tmp_path) not in log.read_text()
    arguments = json.loads(log.read_text().splitlines()[1])["run"]["arguments"]
    assert (arguments["haystack"], arguments["log"]) == ("story.txt", "eval.jsonl")


@pytest.mark.native
def test_the_same_command_measures_nothing_and_prints_the_same(evaluate, tmp_path):
    args = ("--task", "niah", "--task", "reconstruction", "--policy", "restkv", "--log", "a.jsonl")
    first = evaluate(*args)
    kept = (tmp_path / "a.jsonl").read_bytes()
    again = evaluate(*args)
    assert again.out == first.out
    assert again.err == "a.jsonl has 2 scores; the others are added\n"
    assert (tmp_path / "a.jsonl").read_bytes() == kept


@pytest.mark.native
def test_scores_of_another_commit_are_told(evaluate, monkeypatch):
    for commit in ("1234567", "89abcde"):
        monkeypatch.setattr("restkv_local.evaluation.metadata.find_commit", partial(str, commit))
        result = evaluate("--task", "niah", "--policy", "restkv", "--log", "a.jsonl")
        assert result.code == 0
    assert "a.jsonl has scores by commit 1234567; this is 89abcde. If answers" in result.err


@pytest.mark.native
def test_table_prints_what_logs_hold(evaluate, run_cli):
    first = evaluate("--task", "niah", "--log", "a.jsonl")
    evaluate("--task", "niah", "--log", "b.jsonl", "--seed", "7")
    alone = run_cli("eval", "--table", "a.jsonl", command=main)
    assert (alone.code, alone.out, alone.err) == (0, first.out, "")
    both = run_cli("eval", "--table", "a.jsonl", "--table", "b.jsonl", command=main)
    assert "sd over seeds" in both.out


@pytest.mark.native
def test_a_cut_line_is_told_and_measured_again(evaluate, run_cli, tmp_path):
    log = tmp_path / "eval.jsonl"
    first = evaluate("--task", "niah")
    log.write_bytes(log.read_bytes()[:-9])
    shown = run_cli("eval", "--table", log, command=main)
    assert shown.code == 0
    assert "is not whole; it is left out" in shown.err
    again = evaluate("--task", "niah")
    assert "note: the last line of eval.jsonl was not whole; it is dropped" in again.err
    assert again.out == first.out


@pytest.mark.native
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(evaluate, monkeypatch, tmp_path):
    args = ("--task", "niah", "--policy", "restkv", "--prefill", "bounded", "--prefill", "full")
    score, calls = NativeContext.score, []

    def interrupt(self, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(NativeContext, "score", interrupt)
        result = evaluate(*args)
    assert (result.code, result.out) == (130, "")
    assert result.err == "cancelled; the same command goes on with eval.jsonl, nothing is lost\n"
    assert len((tmp_path / "eval.jsonl").read_text().splitlines()) == 2 + 1
    result = evaluate(*args)
    assert result.code == 0
    assert len((tmp_path / "eval.jsonl").read_text().splitlines()) == 2 + 1 + 2


@pytest.mark.native
def test_what_cannot_be_done_is_one_line_and_ends_with_1(evaluate):
    result = evaluate(
        "--task", "niah", "--task", "lambada", "--policy", "h2o", "--policy", "restkv",
        "--allocation", "cake",
    )  # fmt: skip
    assert result.code == 1
    assert "| restkv | cake | 25% |" in result.out
    first, second = result.err.splitlines()
    assert first.startswith("error: h2o cake bounded 25%: allocation='cake' splits by attention")
    assert second.startswith("error: lambada at 400 tokens: reads local data")


@pytest.mark.native
def test_nothing_done_prints_no_table(evaluate):
    assert "lambada at 400 tokens: reads local data" in only_error(evaluate("--task", "lambada"))


@pytest.mark.native
def test_pictures_are_written(evaluate, run_cli, tmp_path):
    pytest.importorskip("matplotlib")
    result = evaluate("--task", "niah", "--task", "reconstruction", "--png", "pictures")
    assert result.code == 0
    names = ["scores.png", "niah-aware-depths.png", "reconstruction.png"]
    assert result.err.splitlines() == [f"wrote pictures/{name}" for name in names]
    again = run_cli("eval", "--table", "eval.jsonl", "--png", "more", command=main)
    assert (again.code, again.out) == (0, result.out)
    assert sorted(path.name for path in (tmp_path / "more").iterdir()) == sorted(names)


@pytest.mark.native
def test_a_model_without_template_is_asked_in_plain_text_and_told(run_cli, tmp_path):
    plain = builders.llama(vocab="bpe", metadata={"tokenizer.chat_template": None})
    path = plain.write(tmp_path / "base.gguf")
    args = ("eval", path, "--task", "niah", "--length", "400", *SMALL, "--log", tmp_path / "l")
    result = run_cli(*args, command=main)
    assert result.code == 0
    assert result.err.startswith("note: the model has no chat template")
    told = run_cli(*args, "--no-template", command=main)
    assert "no chat template" not in told.err


@pytest.mark.native
def test_other_conditions_want_another_log(evaluate):
    evaluate("--task", "niah", "--policy", "restkv")
    assert "was begun with n_sink=4, this run has n_sink=5" in only_error(
        evaluate("--task", "niah", "--n-sink", "5")
    )


@pytest.mark.native
def test_a_text_beyond_the_trained_length_is_pointed_out(run_cli, tmp_path):
    path = builders.llama(vocab="bpe", n_ctx_train=256).write(tmp_path / "short.gguf")
    args = ("eval", path, "--task", "niah", "--length", "400", *SMALL, "--log", tmp_path / "l")
    assert "note: the model was trained on 256 tokens" in run_cli(*args, command=main).err


@pytest.mark.native
@pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a pseudo-terminal")
def test_a_terminal_shows_a_bar_and_errors_above_it(model, tmp_path):
    pexpect = pytest.importorskip("pexpect")
    script = "import sys; from restkv_local.cli.main import main; main(sys.argv[1:])"
    args = ["eval", str(model), "--length", "400", *SMALL, "--task", "lambada", "--task", "niah"]
    with pexpect.spawn(
        sys.executable,
        ["-c", script, *args, "--log", str(tmp_path / "l")],
        encoding="utf-8",
        dimensions=(40, 160),
        timeout=60,
    ) as child:
        child.expect("error: lambada at 400 tokens: reads local data")
        child.expect(r"niah at 400 tokens .*[0-2]/2 ETA")
        child.expect(r"\| full \| - ")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 1


# Refused before a model is opened


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--task", "nonsense"], "task must be one of needles, ruler, "),
        (["--task", "niah", "--policy", "nonsense"], "policy must be one of restkv, "),
        (["--task", "niah", "--allocation", "nonsense"], "allocation must be one of uniform, "),
        (["--task", "niah", "--budget", "many"], "budget must be a number of rows"),
        (["--task", "niah", "--prefill", "half"], "prefill must be one of bounded, full"),
        (
            ["--task", "niah", "--positions", "x"],
            "positions must be one of auto, original, compact",
        ),
        (["--task", "niah", "--n-recent", "0"], "n_recent must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_one_line(run_cli, tmp_path, monkeypatch, args, text):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert text in only_error(run_cli("eval", "none.gguf", *args, command=main), code=2)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--task", "niah", "--png", "none/p"], "name a folder for the pictures"),
    ],
)
def test_files_that_cannot_be_are_one_line(run_cli, tmp_path, monkeypatch, args, text):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert text in only_error(run_cli("eval", "none.gguf", *args, command=main))


@pytest.mark.parametrize("task", ["niah", "ruler-qa_1", "longbench", "ppl"])
def test_a_data_folder_that_is_not_there_is_one_line(run_cli, tmp_path, monkeypatch, task):
    """Some tasks quietly asked what they generate."""
    monkeypatch.chdir(tmp_path)
    args = ("eval", "none.gguf", "--task", task, "--data", "no/such", "--budget", "25%")
    assert "no/such is no folder" in only_error(run_cli(*args, command=main))


def test_questions_of_another_text_than_rulers_are_named(run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def notes(*args):
        result = run_cli("eval", "none.gguf", *args, command=main)
        return [line for line in result.err.splitlines() if line.startswith("note: ")]

    (note,) = notes("--task", "ruler")
    assert "ruler-qa_1 and ruler-qa_2 ask about the manual that ships with Python" in note
    assert "put ruler/squad.json and ruler/hotpotqa.json into the folder of --data" in note
    assert notes("--task", "ruler-vt") == notes("--task", "ppl") == []
    (tmp_path / "ruler" / "512" / "qa_2").mkdir(parents=True)
    (tmp_path / "ruler" / "512" / "qa_2" / "validation.jsonl").touch()
    (note,) = notes("--task", "ruler", "--data", ".", "--length", "512")
    assert "qa_2" not in note
    (tmp_path / "ruler" / "squad.json").touch()
    assert notes("--task", "ruler", "--data", ".", "--length", "512") == []
    (note,) = notes("--task", "ruler", "--data", ".", "--length", "512", "--length", "256")
    assert "qa_1" not in note


def test_a_log_that_is_none_is_one_line(run_cli, tmp_path):
    path = tmp_path / "x"
    path.write_text("hello\n")
    assert "is no log of restkv eval" in only_error(run_cli("eval", "--table", path, command=main))


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["m.gguf"],
        ["--task", "niah"],
        ["m.gguf", "--table", "a"],
        ["m.gguf", "--task", "niah", "--length", "0"],
        ["m.gguf", "--task", "niah", "--question", "perhaps"],
    ],
)
def test_wrong_usage(run_cli, args):
    result = run_cli("eval", *args, command=main)
    assert (result.code, result.out) == (2, "")


def test_help_names_the_options(run_cli):
    result = run_cli("eval", "--help", command=main)
    assert result.code == 0
    assert "--question" in result.out


def test_the_tasks_are_listed_with_their_files(run_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    result = run_cli("eval", "--list", command=main)
    assert (result.code, result.err) == (0, "")
    rows = {line.split()[0]: line for line in result.out.splitlines() if line.strip()}
    assert set(TASKS) | set(TEXT_TASKS) <= set(rows)
    assert "longbench/trec.jsonl" in rows["longbench-trec"]
    assert "validation.jsonl" in rows["ruler-vt"]
