"""What a run says about itself."""

import json

import psutil
import pytest

from restkv_local import version
from restkv_local.bench.metadata import collect_metadata
from restkv_local.model.model_file import read_model
from restkv_local.version import find_commit
from tests import builders


@pytest.mark.native
def test_it_names_model_software_machine_and_settings(tmp_path):
    path = builders.llama().write(tmp_path / "m.gguf")
    found = collect_metadata(read_model(path), {"n_threads": 0, "n_gen": 8})
    assert found["n_threads"] == (psutil.cpu_count(logical=False) or 1)
    assert (found["model"], found["n_gen"], found["quantisation"]) == ("tiny llama", 8, "F32")
    assert found["llama_cpp"].startswith("llama-cpp-python ")
    assert len(found["fingerprint"]) == 64
    assert found["devices"]
    assert json.loads(json.dumps(found)) == found
    assert collect_metadata(read_model(path), {"n_threads": 3, "n_gen": 8})["n_threads"] == 3


def test_a_commit_is_one_word_or_none():
    found = find_commit()
    assert found is None or (found.isprintable() and len(found.split()) == 1)


def test_without_git_or_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_commit() is None
    monkeypatch.setattr(version, "__file__", str(tmp_path / "a" / "b.py"))
    assert find_commit() is None
