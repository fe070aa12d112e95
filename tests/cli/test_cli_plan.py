"""`plan`: what would stay, as a table, an object and a picture; nothing happens to the cache."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from restkv_local.cli.main import main

from restkv_local import ChatSession, Llama
from restkv_local.catalogue import tracked_by
from restkv_local.engine import Engine
from restkv_local.plan_report import plan_policies, read_whole
from restkv_local.policies.registry import POLICIES
from tests import builders

TEXT = "the answer and the question of the code is in the number. " * 25
QUESTION = "what is the number?"
SMALL = ("--n-recent", "8", "--n-obs", "8", "-ub", "64", "-t", "1")
EVICTING = [name for name in POLICIES if POLICIES[name].evicts]


@pytest.fixture
def model(tmp_path):
    return builders.llama(n_head=6, n_head_kv=3, head_dim=64, n_embd=64).write(tmp_path / "m.gguf")


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def plan(run_cli, model, document):
    """Run ``restkv plan`` on the tiny model."""

    def run(*args, **kwargs):
        return run_cli("plan", model, "-f", document, *SMALL, *args, command=main, **kwargs)

    return run


def only_error(result, code=1):
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    return result.err


@pytest.mark.native
def test_every_evicting_policy_is_shown(plan, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    result = plan("-p", QUESTION)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    for name in EVICTING:
        assert rows[name][0] == rows["restkv"][0]  # all heads alike: the same share
    assert rows["restkv"][2] == "100.0%"
    assert "overlap   rows of restkv that stay too" in result.out


@pytest.mark.native
def test_json_keeps_the_budget(plan):
    result = plan("--budget", "25%", "--policy", "snapkv", "--policy", "fifo", "--json")
    assert (result.code, result.err) == (0, "")
    reply = json.loads(result.out)
    assert reply["tokens"] > 300
    assert reply["budget"] == reply["tokens"] // 4
    assert (reply["allocation"], reply["n_obs"], reply["layers"]) == ("uniform", 8, [0, 1])
    snapkv, fifo = reply["policies"]
    assert sorted(fifo) == [
        "depth", "kept", "newest", "overlap", "policy", "rows_max", "rows_min",
    ]  # fmt: skip
    assert (snapkv["policy"], snapkv["overlap"], fifo["policy"]) == ("snapkv", 1, "fifo")
    for entry in (snapkv, fifo):
        assert entry["rows_min"] == entry["rows_max"] == reply["budget"]
        assert entry["kept"] == pytest.approx(reply["budget"] / reply["tokens"])
    assert fifo["depth"] > 0.8
    assert 0 < fifo["overlap"] < 1


@pytest.mark.native
def test_an_allocation_splits_unequally_within_the_total(plan):
    reply = json.loads(plan("--policy", "restkv", "--allocation", "global", "--json").out)
    (entry,) = reply["policies"]
    assert entry["rows_min"] < reply["budget"] < entry["rows_max"]
    assert entry["kept"] == pytest.approx(reply["budget"] / reply["tokens"])


@pytest.mark.native
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("policy", EVICTING)
def test_what_is_planned_is_what_a_chat_keeps(model, policy, allocation):
    """With a full prefill, the same prompt and the same knobs; chunks as large as the prompt, too."""
    options = {
        "budget": "25%", "prefill": "full", "allocation": allocation, "n_recent": 8, "n_obs": 8,
        "n_predict": 0, "n_threads": 1,
    }  # fmt: skip
    with Llama(model, policy=policy, **options) as llama:
        session = ChatSession(llama)
        assert "".join(session.send(QUESTION, documents=[TEXT])) == ""
        assert llama.engine.counters.events == 1
        kept = llama.engine.rows.positions.copy()
        n_rows = llama.engine.rows.n_rows
    names = ["restkv", policy]
    with Llama(model, also_track=tracked_by(names), **options) as llama:
        read_whole(llama, QUESTION, documents=[TEXT])
        keep = plan_policies(llama, names).plans[policy].keep
        assert llama.engine.rows.mean == keep.shape[-1]
    assert (keep.sum(axis=-1) == n_rows).all()
    for layer, head in np.ndindex(*n_rows.shape):
        rows = np.flatnonzero(keep[layer, head])
        np.testing.assert_array_equal(rows, kept[layer, head][-rows.size :])


@pytest.mark.native
def test_several_files_are_planned_under_their_names_as_a_chat_reads_them(
    plan, model, document, tmp_path, monkeypatch
):
    other = tmp_path / "other.txt"
    other.write_text("the lamp goes out. " * 40)
    read, original = [], Engine.read

    def note(engine, tokens, **options):
        read.append(list(tokens))
        return original(engine, tokens, **options)

    monkeypatch.setattr(Engine, "read", note)
    assert plan("-f", other).code == 0
    with Llama(model, n_threads=1) as llama:
        expected, _ = ChatSession(llama).prepare("", documents=[document, other])
    assert read == [expected]


@pytest.mark.native
def test_a_picture_is_written_beside_the_table(plan, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "map.png"
    result = plan("--policy", "restkv", "--policy", "fifo", "--png", path)
    assert (result.code, result.err) == (0, f"wrote {path}\n")
    assert "restkv" in result.out
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.native
def test_an_allocation_leaves_out_what_it_cannot_serve_and_says_so(plan):
    result = plan("--allocation", "cake", "--json")
    assert result.code == 0, result.err
    assert result.err.startswith("note: allocation='cake' splits by attention that h2o, ")
    names = [entry["policy"] for entry in json.loads(result.out)["policies"]]
    assert "snapkv" in names
    assert "h2o" not in names


@pytest.mark.native
def test_a_budget_for_the_whole_text_is_pointed_out(plan):
    result = plan("--budget", "5000", "--policy", "restkv", "--json")
    assert result.code == 0
    assert result.err == "note: a budget of 5,000 rows holds the whole text\n"
    assert json.loads(result.out)["policies"][0]["kept"] == 1


@pytest.mark.native
def test_a_text_beyond_the_trained_length_is_pointed_out(run_cli, tmp_path, document):
    model = builders.llama(n_ctx_train=256).write(tmp_path / "short.gguf")
    args = ["plan", model, "-f", document, *SMALL, "--policy", "restkv"]
    result = run_cli(*args, command=main)
    assert result.code == 0
    assert "more than the 256 that the model was trained on" in result.err


@pytest.mark.native
def test_no_memory_for_the_whole_text_is_one_line(plan, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=0))
    assert "GiB for K, V and scoring but 0.0 GiB are free" in only_error(plan(), code=2)


@pytest.mark.native
def test_a_budget_that_does_not_hold_what_must_stay_is_one_line(plan):
    assert "budget must be at least" in only_error(plan("--budget", "14"), code=2)


@pytest.mark.native
def test_a_percentage_holds_what_must_stay(plan):
    result = plan("--budget", "1%", "--json")
    assert result.code == 0
    reply = json.loads(result.out)
    assert reply["n_sink"] + reply["n_recent"] < reply["budget"] < 40


@pytest.mark.native
@pytest.mark.parametrize("stage", ["read_whole", "plan_policies"])
def test_ctrl_c_ends_with_130(plan, monkeypatch, stage):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"restkv_local.plan_report.{stage}", interrupt)
    result = plan()
    assert (result.code, result.out, result.err) == (130, "", "cancelled, nothing was planned\n")


# Refused before a model is opened


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--policy", "nonsense"], "policy must be one of restkv, "),
        (["--policy", "restkv", "--policy", "full"], "keeps every row"),
        (["--allocation", "nonsense"], "allocation must be one of uniform, "),
        (
            ["--allocation", "cake", "--policy", "h2o"],
            "attention that policy='h2o' does not observe",
        ),
        (["--n-recent", "0"], "n_recent must be at least 1"),
        (["--png", "."], "is a directory"),
        (["--png", "none/map.png"], "there is no folder none"),
    ],
)
def test_options_that_cannot_be_are_one_line(run_cli, document, tmp_path, monkeypatch, args, text):
    monkeypatch.chdir(tmp_path)
    result = run_cli("plan", "none.gguf", "-f", document, *args, command=main)
    assert text in only_error(result, code=2)


def test_a_file_that_is_not_there_is_one_line(run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_cli("plan", "none.gguf", "-f", "none.txt", command=main)
    assert "none.txt: no such file" in only_error(result)


def test_a_missing_matplotlib_is_one_line(run_cli, document, monkeypatch):
    monkeypatch.setattr("restkv_local.optional.find_spec", lambda name: None)
    result = run_cli("plan", "none.gguf", "-f", document, "--png", "map.png", command=main)
    expected = "matplotlib, which is missing: pip install 'restkv-local[plot]'"
    assert expected in only_error(result, code=2)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "--file"),
        (["-f", "-", "-f", "-"], "twice"),
        (["-f", "text.txt", "-p", " "], "the prompt is empty"),
        (["-f", "text.txt", "--budget", "many"], "many"),
    ],
)
def test_wrong_usage(run_cli, args, text):
    result = run_cli("plan", "none.gguf", *args, command=main)
    assert (result.code, result.out) == (2, "")
    assert text in result.err
