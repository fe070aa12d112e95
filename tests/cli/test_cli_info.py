"""`info` and `doctor`: facts without loading weights, and one line when there are none."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from restkv_local.cli.main import chat_main, main

from restkv_local.errors import LibraryNotFoundError
from tests import builders


@pytest.fixture
def model(tmp_path):
    return builders.llama().write(tmp_path / "tiny.gguf")


def facts_of(run_cli, *args):
    result = run_cli("info", *args, "--json", command=main)
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_numbers(run_cli, model):
    facts = facts_of(run_cli, model, "--budget", "512")
    # 2 layers x 2 KV heads x 32 values x (K and V) x 2 bytes
    assert facts["kv_bytes_per_token"] == 2 * 2 * 32 * 2 * 2
    assert facts["supported"] is True
    assert facts["reason"] is None
    by_length = {row["n_ctx"]: row for row in facts["memory"]}
    assert facts["n_ctx_train"] in by_length
    row = by_length[16384]
    assert row["bytes_full"] == 16384 * 512
    # 512 + chunk 512 + guide 64, rounded up to a multiple of 256
    assert row["capacity"] == 1280
    assert row["bytes"] == 1280 * 512


def test_chunk_and_types_count(run_cli, tmp_path):
    model = builders.llama(head_dim=64).write(tmp_path / "m.gguf")
    facts = facts_of(
        run_cli, model, "--budget", "512", "-ub", "128", "-ctk", "q8_0", "-ctv", "q4_0"
    )
    assert facts["kv_bytes_per_token"] == 2 * 2 * (2 * 34 + 2 * 18)
    assert facts["memory"][0]["capacity"] == 768
    assert facts["positions"] == ["original"]


@pytest.mark.parametrize(
    ("budget", "rows"), [("1MiB", [2048 - 576] * 4), ("25%", [512, 1024, 4096, 16384])]
)
def test_budgets_that_are_no_rows(run_cli, model, budget, rows):
    facts = facts_of(run_cli, model, "--budget", budget)
    assert [row["budget"] for row in facts["memory"]] == rows


def test_tables_are_for_people_and_on_stdout(run_cli, model):
    result = run_cli("info", model, "--budget", "512", command=main)
    assert (result.code, result.err) == (0, "")
    assert "KV per token  0.5 KiB (K f16, V f16)" in result.out
    assert "eviction      supported, positions original or compact" in result.out
    assert "2,048 (trained)" in result.out


def test_a_model_that_cannot_run_says_why(run_cli, tmp_path):
    path = replace(builders.llama(), arch="gptx").write(tmp_path / "m.gguf")
    result = run_cli("info", path, command=main)
    assert result.code == 0
    assert "not supported: " in result.out
    facts = facts_of(run_cli, path)
    assert facts["supported"] is False
    assert "'gptx' is not verified" in facts["reason"]


def test_an_option_that_a_model_cannot_have_is_refused_as_usage(run_cli, tmp_path):
    model = builders.llama(head_dim=64).write(tmp_path / "m.gguf")
    result = run_cli("info", model, "-ctk", "q4_0", "--positions", "compact", command=main)
    assert (result.code, result.out) == (2, "")
    assert "use -ctk f16 or --positions original" in result.err


def test_sliding_window_layers_are_counted_apart(run_cli, tmp_path):
    path = builders.gemma3(n_layer=6).write(tmp_path / "swa.gguf")
    facts = facts_of(run_cli, path)
    assert facts["n_layer_full"] == 1
    assert facts["kv_bytes_swa"] > 0
    row = facts["memory"][0]
    assert row["bytes_full"] == row["n_ctx"] * facts["kv_bytes_per_token"] + facts["kv_bytes_swa"]
    result = run_cli("info", path, command=main)
    assert "1 with full attention" in result.out


def test_info_needs_neither_numpy_nor_the_library(model):
    code = (
        "import sys\n"
        "from restkv_local.cli.main import main\n"
        "try:\n"
        f"    main(['info', {str(model)!r}])\n"
        "except SystemExit as end:\n"
        "    heavy = {'numpy', 'llama_cpp'} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy else end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# Bad files: one line, exit 1, the same through every command


def missing(folder):
    return folder / "none.gguf"


def directory(folder):
    return folder


def empty(folder):
    path = folder / "empty.gguf"
    path.touch()
    return path


def no_gguf(folder):
    path = folder / "note.gguf"
    path.write_text("dear diary", encoding="utf-8")
    return path


def truncated(folder):
    path = builders.llama().write(folder / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:2000])
    return path


@pytest.mark.usefixtures("at_terminal")
@pytest.mark.parametrize("command", ["info", "chat"])
@pytest.mark.parametrize("make", [missing, directory, empty, no_gguf, truncated])
def test_a_bad_model_file_is_one_line(make, command, tmp_path, capsys):
    path = str(make(tmp_path))
    with pytest.raises(SystemExit) as end:
        main(["info", path]) if command == "info" else chat_main([path, "-p", "hello"])
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (1, "")
    assert err.startswith("error: ")
    assert path in err
    assert err.count("\n") == 1


def test_doctor(run_cli, monkeypatch):
    monkeypatch.setattr(
        "restkv_local.native.library_info",
        lambda: {
            "path": "/somewhere/lib",
            "abi": 1,
            "pin": "llama-cpp-python 0.3.36",
            "version": "0.3.36",
            "system_info": "CPU : AVX2 = 1 |",
            "hooks_enabled": True,
            "devices": [
                {
                    "name": "CPU",
                    "description": "a processor",
                    "memory_free": 8 * 2**30,
                    "memory_total": 16 * 2**30,
                }
            ],
        },
    )
    monkeypatch.setenv("RESTKV_TILES", "0")
    result = run_cli("doctor", command=main)
    assert (result.code, result.err) == (0, "")
    for part in (
        "RESTKV_TILES=0",
        "library   /somewhere/lib",
        "ABI       1",
        "pin       llama-cpp-python 0.3.36, bindings 0.3.36",
        "hooks     on",
        "device    CPU: a processor, 8,192 MiB free of 16.0 GiB",
    ):
        assert part in result.out


def test_doctor_without_a_library_says_how_to_build(run_cli, monkeypatch):
    def missing_library():
        raise LibraryNotFoundError("no patched llama library in lib: build it with `make setup`")

    monkeypatch.setattr("restkv_local.native.library_info", missing_library)
    result = run_cli("doctor", command=main)
    assert result.code == 1
    assert result.err == "error: no patched llama library in lib: build it with `make setup`\n"
    assert "python" in result.out  # what is known is printed all the same


@pytest.mark.usefixtures("at_terminal")
def test_a_missing_library_is_one_line_in_a_chat(tmp_path, monkeypatch, capsys, model):
    monkeypatch.setenv("RESTKV_LIBRARY", str(tmp_path))
    from restkv_local.native import _library

    _library.load.cache_clear()
    with pytest.raises(SystemExit) as end:
        chat_main([str(model), "-p", "hello"])
    _library.load.cache_clear()
    assert end.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("error: no patched llama library in ")
    assert err.count("\n") == 1


def test_doctor_shows_when_the_hooks_are_off(run_cli, monkeypatch):
    facts = {"path": "x", "abi": 1, "pin": "p", "version": "v", "system_info": "s", "devices": []}
    monkeypatch.setattr(
        "restkv_local.native.library_info", lambda: {**facts, "hooks_enabled": False}
    )
    assert "hooks     off" in run_cli("doctor", command=main).out


def test_memory_that_is_not_enough_is_one_line(run_cli, model, monkeypatch):
    def read(path):
        raise MemoryError

    monkeypatch.setattr("restkv_local.cli.info.read_model", read)
    result = run_cli("info", model, command=main)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: memory is not enough for this")
    assert result.err.count("\n") == 1
