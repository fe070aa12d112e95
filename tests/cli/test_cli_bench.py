"""`bench`: a table of caches side by side, on a tiny model, every cell in its own process."""

import csv
import io
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from restkv_local.cli.main import main

from restkv_local.model.synthetic_model import SHAPES, SyntheticShape
from tests import builders

SMALL = ("-d", "64,400", "-p", "32", "-n", "4", "-r", "1", "--budget", "64", "-ub", "64", "-t", "1")
COLUMNS = ["full", "full q8_0", "shift 64", "restkv 64"]


@pytest.fixture
def model(tmp_path):
    return builders.llama(vocab="bpe", head_dim=64).write(tmp_path / "m.gguf")


@pytest.fixture
def bench(run_cli, model):
    """Run ``restkv bench`` on the tiny model."""
    return lambda *args: run_cli("bench", model, *SMALL, *args, command=main)


def only_error(result, code=1):
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    return result.err


@pytest.mark.native
def test_every_cache_is_a_column_and_every_test_a_row(bench):
    result = bench("--profile")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith("- model: tiny llama (llama, F32, ")
    assert f"| test | unit | {' | '.join(COLUMNS)} |" in lines
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines if " | " in line}
    for test in ("pp32", "tg4", "ttft", "peak memory", "K and V"):
        for depth in (64, 400):
            assert "-" not in rows[f"{test} @ d{depth}"][2:]
    assert rows["evictions @ d400"][2:4] == ["-", "-"]
    assert float(rows["evictions @ d400"][5].strip(" |")) > 1
    assert any(line.startswith("| where ttft @ d400 goes, ms |") for line in lines)


@pytest.mark.native
def test_json_and_csv_tell_the_same(bench, tmp_path):
    log = ("--log", tmp_path / "log.jsonl", "--reference", "full")
    found = json.loads(bench(*log, "--json").out)
    rows = list(csv.DictReader(io.StringIO(bench(*log, "--csv").out)))
    assert [row["cache"] for row in rows] == [figure["cache"] for figure in found["figures"]]
    assert [float(row["median"]) for row in rows] == [f["median"] for f in found["figures"]]
    assert {row["cache"] for row in rows} == {"full", "restkv 64"}
    metadata = found["metadata"]
    assert (metadata["n_threads"], metadata["n_prompt"], metadata["n_ubatch"]) == (1, 32, 64)
    assert metadata["version"]
    assert found["errors"] == []


@pytest.mark.native
def test_a_log_alone_prints_what_the_run_printed(bench, run_cli, tmp_path):
    log = tmp_path / "log.jsonl"
    measured = bench("--log", log, "--profile")
    shown = run_cli("bench", "--table", log, "--profile", command=main)
    assert (shown.code, shown.err, shown.out) == (0, "", measured.out)


def test_a_file_that_is_no_log_is_refused(run_cli, tmp_path):
    for text in ("", "{}\n", "not JSON\n"):
        (tmp_path / "log.jsonl").write_text(text)
        result = run_cli("bench", "--table", tmp_path / "log.jsonl", command=main)
        assert "is no log of restkv bench" in only_error(result)
    assert "nothing" in only_error(run_cli("bench", "--table", tmp_path / "nothing", command=main))


@pytest.mark.native
def test_a_log_is_gone_on_with_and_may_grow(bench, tmp_path, monkeypatch):
    log = tmp_path / "log.jsonl"
    assert bench("--log", log, "--reference", "none").code == 0
    before = log.read_text()
    assert len(before.splitlines()) == 1 + 2
    result = bench("--log", log, "--reference", "none", "--policy", "snapkv", "--policy", "restkv")
    assert result.code == 0
    assert log.read_text().startswith(before)
    added = [json.loads(line) for line in log.read_text()[len(before) :].splitlines()]
    assert {sample["cache"] for sample in added} == {"snapkv 64"}
    assert "begun with n_threads=1, this run has" in only_error(bench("--log", log, "-t", "2"))


@pytest.mark.native
def test_a_cell_that_cannot_be_measured_is_named_below_the_table(run_cli, tmp_path):
    """q8_0 rows come in blocks of 32."""
    model = builders.llama(vocab="bpe", head_dim=16).write(tmp_path / "narrow.gguf")
    result = run_cli("bench", model, *SMALL, "--reference", "q8_0", command=main)
    assert (result.code, result.err) == (0, "")
    notes = [line for line in result.out.splitlines() if line.startswith("- not measured: ")]
    assert len(notes) == 2
    assert notes[0].startswith(
        "- not measured: full q8_0 @ d64: tiny llama (llama) cannot run here"
    )
    only = run_cli("bench", model, *SMALL, "--reference", "none", "-ctk", "q8_0", command=main)
    assert "nothing could be measured: restkv 64 q8_0/f16 @ d64: tiny" in only_error(only)


@pytest.mark.native
def test_a_picture_is_written_beside_the_table(bench, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "b.png"
    result = bench("--png", path, "--reference", "none")
    assert (result.code, result.err) == (0, f"wrote {path}\n")
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.native
def test_a_shape_is_measured_without_its_weights(run_cli, monkeypatch):
    tiny = SyntheticShape(
        arch="qwen2", n_layer=2, n_embd=128, n_head=4, n_head_kv=2, head_dim=32, n_ff=256,
        n_vocab=400, n_ctx_train=2048, rope_freq_base=1e4, qkv_bias=True,
    )  # fmt: skip
    monkeypatch.setitem(SHAPES, "tiny", tiny)
    args = (
        "bench",
        "--shape",
        "tiny",
        "--weights",
        "q8_0",
        *SMALL,
        "--reference",
        "full",
        "--json",
    )
    first, second = (run_cli(*args, command=main) for _ in range(2))
    assert first.err.startswith("writing 0.")
    assert first.err.endswith("tiny-q8_0.gguf\n")
    assert (first.code, second.code, second.err) == (0, 0, "")
    found = json.loads(second.out)
    assert found["metadata"]["model"] == "tiny (random weights)"
    assert found["metadata"]["quantisation"] == "Q8_0"
    assert {figure["cache"] for figure in found["figures"]} == {"full", "restkv 64"}


@pytest.mark.native
def test_ctrl_c_keeps_what_was_measured_and_says_so(bench, tmp_path, monkeypatch):
    log = tmp_path / "log.jsonl"
    assert bench("--log", log, "--reference", "none").code == 0

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("restkv_local.bench.process._converse", interrupt)
    result = bench("--log", log)
    assert (result.code, result.out) == (130, "")
    assert result.err == (
        f"cancelled, 2 cells were measured; the same command goes on with {log}\n"
    )
    assert bench().err == "cancelled, 0 cells were measured; with --log it would be kept\n"


@pytest.mark.native
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_a_real_run_and_its_child(model, tmp_path):
    code = "from restkv_local.cli.main import main; main()"
    args = ["bench", str(model), "-d", "500000", "-ub", "64", "--budget", "64", "-t", "1"]
    command = [sys.executable, "-c", code, *args, "--reference", "none"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        children = []
        while not children and run.poll() is None:
            children = psutil.Process(run.pid).children()
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (130, "")
    assert err == "cancelled, 0 cells were measured; with --log it would be kept\n"
    assert not any(child.is_running() for child in children)


@pytest.mark.native
@pytest.mark.model
def test_the_demo_model_can_be_measured(run_cli):
    result = run_cli(
        "bench", "demo", "-d", "300", "-p", "16", "-n", "4", "-r", "1", "--budget", "64", "-t", "1",
        "--reference", "shift", "--json", "-ub", "128", command=main,
    )  # fmt: skip
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert {figure["cache"] for figure in found["figures"]} == {"shift 64", "restkv 64"}


# Refused before anything is measured


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--shape", "llama-9"], "shape must be one of llama-3.1-8b, "),
        (["none.gguf", "--policy", "nonsense"], "policy must be one of restkv, "),
        (["none.gguf", "--policy", "full"], "policy='full' evicts nothing"),
        (["none.gguf", "--allocation", "nonsense"], "allocation must be one of uniform, "),
        (
            ["none.gguf", "--reference", "half"],
            "reference must be one of full, q8_0, shift, tiles, none",
        ),
        (["none.gguf", "--budget", "many"], "budget='many'"),
        (["none.gguf", "-ub", "0"], "n_ubatch must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_one_line(run_cli, tmp_path, monkeypatch, args, text):
    monkeypatch.chdir(tmp_path)
    assert text in only_error(run_cli("bench", *args, command=main), code=2)


def test_a_model_that_is_not_there_is_one_line(run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_cli("bench", "none.gguf", command=main)
    assert "no model at none.gguf" in only_error(result)


@pytest.mark.parametrize(
    ("png", "text"), [(".", "is a directory"), ("none/b.png", "there is no folder none")]
)
def test_a_picture_that_cannot_be_written_is_refused_first(
    run_cli, tmp_path, monkeypatch, png, text
):
    monkeypatch.chdir(tmp_path)
    result = run_cli("bench", "none.gguf", "--png", png, command=main)
    assert text in only_error(result, code=2)


def test_a_disk_without_room_for_a_shape_is_one_line(run_cli, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 30))
    result = run_cli("bench", "--shape", "llama-3.1-8b", command=main)
    assert (result.code, result.out) == (1, "")
    said, error = result.err.splitlines()
    assert said.startswith("writing 4,")
    assert "1.0 GiB are free on its disk" in error


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "name a MODEL, a --shape, or a log with --table"),
        (["m.gguf", "--shape", "mistral-7b"], "name a MODEL, a --shape, or a log with --table"),
        (["m.gguf", "--table", "bench.jsonl"], "name a MODEL, a --shape, or a log with --table"),
        (["m.gguf", "--json", "--csv"], "leave one out"),
        (["m.gguf", "-d", "512,many"], "whole numbers, as in 512,2048; got 'many'"),
        (["m.gguf", "-d", "-5"], "whole numbers"),
        (["m.gguf", "-d", ""], "whole numbers"),
        (["m.gguf", "-d", "512,99999999999999"], "at most 10,000,000 tokens; got 99999999999999"),
        (["m.gguf", "-d", "9" * 5000], "at most 10,000,000 tokens; got 9999"),
        (["m.gguf", "-r", "0"], "--repetitions"),
        (["m.gguf", "-p", "0"], "--n-prompt"),
        (["m.gguf", "--weights", "q9"], "--weights"),
    ],
)
def test_wrong_usage(run_cli, args, text):
    result = run_cli("bench", *args, command=main)
    assert (result.code, result.out) == (2, "")
    assert text in result.err


def test_help_does_not_wait_for_numpy():
    code = (
        "import sys; from restkv_local.cli.main import app;"
        "import typer; typer.main.get_command(app); print('numpy' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"


@pytest.mark.parametrize(
    "args",
    [
        ("model.gguf", "--weights", "q8_0"),
        ("model.gguf", "--vocabulary", "small"),
        ("--table", "a.jsonl", "--log", "b.jsonl"),
        ("model.gguf", "--reference", "none", "--reference", "full"),
    ],
)
def test_options_that_would_do_nothing_are_refused(args):
    with pytest.raises(SystemExit) as end:
        main(["bench", *args])
    assert end.value.code == 2
