"""Options: llama.cpp's spellings, Config's defaults, exit code 2 for what cannot be parsed."""

import dataclasses
import os
import re
import subprocess
import sys

import pytest
from restkv_local.cli import _options
from restkv_local.cli.main import main

from restkv_local.config import DEFAULTS, Config
from restkv_local.policies.registry import POLICIES, make_policy

# Config fields that are switches of the Python API only.
NOT_ON_THE_COMMAND_LINE = {"guide_reduction", "order", "past_only", "use_wo"}

SPELLINGS = [
    (["--budget", "512"], "budget", "512"),
    (["--budget", "512MiB"], "budget", "512MiB"),
    (["--budget", "25%"], "budget", "25%"),
    (["--policy", "snapkv"], "policy", "snapkv"),
    (["--allocation", "uniform"], "allocation", "uniform"),
    (["--prefill", "full"], "prefill", "full"),
    (["--positions", "compact"], "positions", "compact"),
    (["--guide", "what is the number"], "guide", "what is the number"),
    (["--n-sink", "8"], "n_sink", 8),
    (["--n-recent", "16"], "n_recent", 16),
    (["--n-obs", "64"], "n_obs", 64),
    (["--n-guide", "0"], "n_guide", 0),
    (["-ub", "256"], "n_ubatch", 256),
    (["--ubatch-size", "256"], "n_ubatch", 256),
    (["-ctk", "q8_0"], "type_k", "q8_0"),
    (["--cache-type-k", "q8_0"], "type_k", "q8_0"),
    (["-ctv", "q4_0"], "type_v", "q4_0"),
    (["--kernel", "5"], "kernel", 5),
    (["--alpha", "0.5"], "alpha", 0.5),
    (["--scale", "100"], "scale", 100.0),
    (["--tau", "2"], "tau", 2.0),
    (["--scoring", "numpy"], "scoring", "numpy"),
    (["-n", "-1"], "n_predict", -1),
    (["-n5"], "n_predict", 5),
    (["--temp", "0"], "temp", 0.0),
    (["--top-k", "1"], "top_k", 1),
    (["--top-p", "0.5"], "top_p", 0.5),
    (["--min-p", "0"], "min_p", 0.0),
    (["--repeat-penalty", "1.1"], "repeat_penalty", 1.1),
    (["--seed", "-1"], "seed", -1),
    (["-t", "2"], "n_threads", 2),
    (["-ngl", "99"], "n_gpu_layers", 99),
    (["-ngl=99"], "n_gpu_layers", 99),
]


@pytest.mark.parametrize(("args", "field", "value"), SPELLINGS, ids=lambda value: str(value))
def test_an_option_reaches_its_config_field(run_cli, args, field, value):
    result = run_cli("model.gguf", "-p", "hello", *args)
    assert result.code == 0, result.err
    settings = result.call["settings"]
    assert settings[field] == value
    assert type(settings[field]) is type(value)


def test_every_other_setting_is_the_config_default(run_cli):
    settings = run_cli("model.gguf", "-p", "hello").call["settings"]
    defaults = dataclasses.asdict(DEFAULTS)
    for name in NOT_ON_THE_COMMAND_LINE:
        del defaults[name]
    defaults["budget"] = str(defaults["budget"])
    assert settings == defaults


OTHER_VALUES = {"kernel": 5, "alpha": 0.5, "scale": 100.0, "tau": 2.0}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_help_names_the_policies_that_take_an_option_and_no_others(name):
    """A policy that does not take it is built as without it, and nothing else would say so."""
    option = getattr(_options, name.capitalize()).__metadata__[0]
    named = set(re.split(r"[ ,;.]+", option.help)) & set(POLICIES)
    changed = Config(**{name: OTHER_VALUES[name]})
    assert named == {each for each in POLICIES if make_policy(each, changed) != make_policy(each)}


@pytest.mark.parametrize("spelling", ["-sys", "--system"])
def test_system_prompt_and_verbose(run_cli, spelling):
    call = run_cli("model.gguf", "-p", "hello", spelling, "be brief", "-v").call
    assert call["system"] == "be brief"
    assert call["verbose"] is True


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--nonsense"], "No such option"),
        (["-sy", "text"], "No such option"),
        (["--budget", "many"], "many"),
        (["--top-k", "many"], "--top-k"),
        (["--prefill", "lazy"], "bounded"),
        (["-ctk", "q5_1"], "q8_0"),
    ],
)
def test_what_cannot_be_parsed_is_wrong_usage(run_cli, args, text):
    result = run_cli("model.gguf", "-p", "hello", *args)
    assert result.code == 2
    assert text in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    "args", [["--budget", "0"], ["--budget", "3"], ["--kernel", "4"], ["--alpha", "2"]]
)
def test_a_value_out_of_bounds_is_one_line_before_anything_is_loaded(run_cli, args):
    result = run_cli("model.gguf", "-p", "hello", *args)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert "model" not in result.call


def test_no_model_is_wrong_usage(run_cli):
    assert run_cli("-p", "hello").code == 2


def test_restkv_chat_is_the_same_command(run_cli):
    result = run_cli("chat", "model.gguf", "-p", "hello", command=main)
    assert (result.code, result.out) == (0, "heard: hello\n")


@pytest.mark.parametrize("args", [["--version"], ["chat", "--version"]])
def test_version(run_cli, args):
    result = run_cli(*args, command=main)
    assert result.code == 0
    assert result.out.startswith("restkv-local ")


@pytest.mark.parametrize(
    "args", [["--help"], ["chat", "-h"], ["info", "-h"], ["policies", "-h"], ["plan", "-h"]]
)
def test_help_imports_neither_numpy_nor_llama_cpp(args):
    code = (
        "import sys\n"
        "from restkv_local.cli.main import main\n"
        "try:\n"
        f"    main({args!r})\n"
        "except SystemExit as end:\n"
        "    heavy = {'numpy', 'llama_cpp', 'gguf', 'jinja2', 'prompt_toolkit'} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy else end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no SIGINT to one process")
@pytest.mark.parametrize("command", ["restkv", "restkv_chat"])
def test_ctrl_c_during_the_imports_is_130_without_a_traceback(command, tmp_path):
    # Stands in for Typer, the first of the heavy imports; even an import that calls it another error.
    (tmp_path / "typer.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except BaseException:\n"
        "    raise ImportError('half of it')\n"
    )
    code = f"from restkv_local.cli.entry import {command}; {command}()"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_before_the_command_begins_is_130(monkeypatch):
    def stopped(app):
        raise KeyboardInterrupt

    monkeypatch.setattr("typer.main.get_command", stopped)
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 130


def test_ctrl_c_stays_ignored_where_it_was():
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from restkv_local.cli.entry import restkv\n"
        "sys.argv = ['restkv', '--version']\n"
        "try:\n"
        "    restkv()\n"
        "except SystemExit as end:\n"
        "    sys.exit(end.code or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_every_command(run_cli):
    help_text = run_cli("--help", command=main).out
    for name in ("chat", "info", "policies", "plan", "doctor"):
        assert name in help_text
