"""`restkv ask`: what is refused before anything is loaded, and the whole command on a tiny model."""

import json

import pytest
from restkv_local.cli.main import main

from tests.session.conversation import MODEL, prose


def run(capsys, *args):
    """Run a command line; return exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as done:
        main(["ask", *map(str, args)])
    return done.value.code or 0, *capsys.readouterr()


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("\n".join(prose(20, seed=i) for i in range(20)))
    return path


@pytest.fixture
def tiny(tmp_path):
    small = {
        "-ub": 128,
        "--n-guide": 48,
        "--n-recent": 8,
        "--n-obs": 8,
        "--budget": 112,
        "-n": 8,
        "-t": 1,
    }
    options = [part for option in small.items() for part in option]
    return [MODEL.write(tmp_path / "tiny.gguf"), *options]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["-q", " "], 2, "a question is empty"),
        (["--mode", "ingest", "--no-cache"], 2, "nothing to do"),
        (["-q", "Why?", "--budget", "0"], 1, "budget"),
        (["-q", "Why?", "--mode", "often"], 2, "--mode"),
    ],
)
def test_a_wrong_command_line_is_told_before_anything_is_read(capsys, log, args, code, message):
    found, out, err = run(capsys, "no-model.gguf", log, *args)
    assert (found, out) == (code, "")
    assert message in err


def test_a_missing_document_is_told_before_the_model_is_looked_for(capsys, tmp_path):
    code, out, err = run(capsys, "no-model.gguf", tmp_path / "gone.pdf", "-q", "Why?")
    assert (code, out) == (1, "")
    assert "gone.pdf" in err
    assert err.count("\n") == 1


@pytest.mark.native
@pytest.mark.parametrize("mode", ["per-question", "shared", "ingest"])
def test_json_tells_everything(capsys, log, tiny, mode):
    model, *options = tiny
    args = [model, log, "-q", "where?", "-q", "who?", "--mode", mode, "--json", *options]
    code, out, err = run(capsys, *args)
    assert code == 0, err
    reply = json.loads(out)
    assert list(reply) == ["model", "version", "mode", "documents", "reading", "answers"]
    assert reply["mode"] == mode
    (document,) = reply["documents"]
    assert (document["name"], document["kind"]) == (str(log), "text")
    assert (reply["reading"] is None) == (mode == "per-question")
    for question, answer in zip(["where?", "who?"], reply["answers"], strict=True):
        assert answer["question"] == question
        assert answer["finish_reason"] in ("stop", "length")
        assert answer["kv"]["evicted"] > 0
        for passage in answer["passages"]:
            assert passage["document"] == str(log)
            assert passage["place"].startswith("line")


@pytest.mark.native
def test_answers_are_on_stdout_and_where_they_come_from_on_stderr(capsys, log, tiny):
    model, *options = tiny
    code, out, err = run(capsys, model, log, "-q", "where?", "-q", "who?", *options)
    assert code == 0
    assert out.startswith("where?\n")
    assert "\nwho?\n" in out
    assert "KV" not in out
    assert f"{log}, line" in err
    assert "read once (shared)" in err


@pytest.mark.native
def test_read_now_and_ask_later(capsys, log, tiny):
    model, *options = tiny
    code, out, err = run(capsys, model, log, "--mode", "ingest", *options)
    assert (code, out) == (0, "")
    assert "read once (ingest)" in err
    code, out, err = run(capsys, model, log, "--mode", "ingest", "-q", "where?", *options)
    assert code == 0
    assert out
    assert "tokens from the cache folder" in err
