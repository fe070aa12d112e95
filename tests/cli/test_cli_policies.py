"""`policies`: the registry for people and for programs, without a model."""

import json
import subprocess
import sys

import pytest
from restkv_local.cli.main import main

from restkv_local.allocators.registry import ALLOCATORS
from restkv_local.policies.registry import POLICIES


@pytest.mark.parametrize("columns", ["80", "100", "160"])
def test_every_name_is_in_a_table_that_fits(run_cli, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    result = run_cli("policies", command=main)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= int(columns)
    first_words = [line.split()[0] for line in lines if line.strip()]
    for name in [*POLICIES, *ALLOCATORS]:
        assert name in first_words


def test_needs_and_sources_are_told(run_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = run_cli("policies", command=main).out.splitlines()
    by_name = {line.split()[0]: line for line in lines if line.strip()}
    assert by_name["restkv"].rstrip().endswith("attention")
    assert "arXiv:2605.08840" in by_name["restkv"]
    assert by_name["h2o"].rstrip().endswith("all queries")
    assert by_name["full"].rstrip().endswith("nothing")
    assert "arXiv:2407.11550" in by_name["ada"]


def test_json(run_cli):
    result = run_cli("policies", "--json", command=main)
    assert (result.code, result.err) == (0, "")
    reply = json.loads(result.out)
    assert sorted(reply) == ["allocators", "policies"]
    assert [entry["name"] for entry in reply["policies"]] == list(POLICIES)
    assert {key for entry in reply["policies"] for key in entry} == {
        "name", "summary", "source", "evicts", "needs",
    }  # fmt: skip
    assert [entry["name"] for entry in reply["allocators"]] == list(ALLOCATORS)
    assert {key for entry in reply["allocators"] for key in entry} == {"name", "summary", "source"}


def test_the_native_library_is_not_loaded():
    code = (
        "import sys\n"
        "from restkv_local.cli.main import main\n"
        "try:\n"
        "    main(['policies', '--json'])\n"
        "except SystemExit as end:\n"
        "    heavy = {'llama_cpp', 'gguf', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy else end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
