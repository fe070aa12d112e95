"""Needles and reconstruction on the demo model: what a small cache still answers, and what it moves."""

import json

import pytest
from restkv_local.cli.main import main

pytestmark = [pytest.mark.native, pytest.mark.model]

SMALL = ("-t", "1", "-ub", "128", "--budget", "128")


@pytest.fixture
def evaluate(tmp_path, capsys):
    def run(*args):
        with pytest.raises(SystemExit) as end:
            main(["eval", "demo", *SMALL, "--log", str(tmp_path / "e.jsonl"), *args])
        assert end.value.code == 0, capsys.readouterr().err
        lines = (tmp_path / "e.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines[2:]]

    return run


def test_needles_are_found_with_128_rows_of_600(evaluate):
    records = evaluate("--task", "niah", "--length", "600", "-n", "2", "--policy", "restkv")
    assert [record["extra"]["depth"] for record in records] == [0, 100]
    for record in records:
        assert record["scores"]["substring"] == 1
        assert record["references"][0] in record["prediction"]
        assert record["tokens"]["read"] > 550
        assert record["kv"]["evicted"] > 250
        assert record["kv"]["peak"] <= 512  # 128 + 128 + 64, as llama.cpp rounds it up


def test_the_rule_that_minimises_the_error_moves_less_than_noise(evaluate):
    names = ("restkv", "streamingllm", "random")
    policies = [word for name in names for word in ("--policy", name)]
    records = evaluate("--task", "reconstruction", "--length", "600", "-n", "1", *policies)
    errors = {record["cell"]["policy"]: record["scores"]["error"] for record in records}
    assert errors["restkv"] < min(errors["streamingllm"], errors["random"]) / 1.2
    assert all(len(record["extra"]["errors"]) == 30 for record in records)
