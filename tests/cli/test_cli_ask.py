"""`restkv ask`: what is refused before anything is loaded, and the whole command on a tiny model."""

import json
import subprocess
import sys

import pytest
from restkv_local.cli.main import main

from tests.documents.document_files import SAMPLES
from tests.session.conversation import MODEL, prose

SCRIPT = "import sys; from restkv_local.cli.main import main; main(sys.argv[1:])"


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
        "--temp": 0,  # by chance a tiny model draws its end
    }
    options = [part for option in small.items() for part in option]
    return [MODEL.write(tmp_path / "tiny.gguf"), *options]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["-q", " "], 2, "a question is empty"),
        (
            ["--no-cache"],
            2,
            "nothing to do: with --no-cache (or RESTKV_CACHE_LIMIT=0) and no question",
        ),
        (
            ["--no-cache", "--mode", "ingest"],
            2,
            "nothing to do: with --no-cache (or RESTKV_CACHE_LIMIT=0) and no question",
        ),
        (["--mode", "per-question"], 2, "nothing to do: --mode per-question"),
        (["--mode", "per-question", "--json"], 2, "nothing to do: --mode per-question"),
        (["-q", "Why?", "--budget", "0"], 2, "budget"),
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
def test_json_tells_what_a_reading_took_that_is_not_kept(capsys, log, tiny):
    model, *options = tiny
    code, out, err = run(capsys, model, log, "--no-cache", "--json", *options)
    assert code == 0, err
    reply = json.loads(out)
    assert reply["reading"]["kv"]["kept"] == 112
    assert reply["answers"] == []


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
def test_a_passage_cannot_command_the_terminal(capsys, tmp_path, tiny):
    model, *options = tiny
    evil = tmp_path / "evil.txt"
    evil.write_text("\x1b]0;OWNED\x07\x9b2J" * 200)
    code, _, err = run(capsys, model, evil, "-q", "where?", *options)
    assert code == 0, err
    assert "]0;OWNED2J]0;OWNED2J" in err
    assert not any(character in err for character in "\x1b\x07\x9b")


@pytest.mark.native
def test_one_question_says_how_often_the_documents_were_read(capsys, log, tiny):
    model, *options = tiny
    _, _, err = run(capsys, model, log, "-q", "where?", *options)
    assert "read for each question (per-question)" in err


@pytest.mark.native
def test_every_kind_of_document_is_read(capsys, tmp_path, tiny):
    model, *options = tiny
    paths = [tmp_path / name for name in SAMPLES]
    for path in paths:
        path.write_bytes(SAMPLES[path.name])
    code, out, err = run(capsys, model, *paths, "-q", "where?", "--json", *options)
    assert code == 0, err
    found = {document["name"]: document["kind"] for document in json.loads(out)["documents"]}
    kinds = ("text", "markdown", "html", "pdf", "docx", "epub")
    assert found == dict(zip(map(str, paths), kinds, strict=True))


@pytest.mark.native
def test_standard_input_is_a_document(log, tiny):
    model, *options = tiny
    command = [sys.executable, "-c", SCRIPT, "ask", model, "-", "-q", "where?", "--json", *options]
    done = subprocess.run(
        list(map(str, command)), input=log.read_bytes(), capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (document,) = json.loads(done.stdout)["documents"]
    assert document["characters"] == len(log.read_text())


@pytest.fixture
def at_terminal(tiny, monkeypatch):
    """Run the command at a pseudo-terminal."""
    pexpect = pytest.importorskip("pexpect")
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")
    children = []

    def spawn(*args):
        model, *options = map(str, tiny)
        child = pexpect.spawn(
            sys.executable,
            ["-c", SCRIPT, "ask", model, *map(str, args), *options],
            encoding="utf-8",
            dimensions=(40, 160),
            timeout=120,
        )
        children.append(child)
        return child

    yield spawn
    for child in children:
        child.close(force=True)


def exit_code(child):
    """Read the terminal to its end; return the exit code."""
    child.read()
    child.wait()
    return child.exitstatus


@pytest.mark.native
@pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a pseudo-terminal")
@pytest.mark.parametrize("more", [[], ["--json"], ["--mode", "shared"]])
def test_ctrl_c_ends_the_reading(at_terminal, tmp_path, more):
    long = tmp_path / "long.txt"
    long.write_text(prose(200_000))
    child = at_terminal(long, "-q", "where?", *more)
    child.expect(r"\d t/s")  # the bar
    child.sendintr()
    child.expect("cancelled: the documents were not read to their end")
    assert "read for each" not in child.read()
    assert exit_code(child) == 130


@pytest.mark.native
@pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a pseudo-terminal")
@pytest.mark.parametrize("more", [[], ["--mode", "ingest", "--no-cache"]])
def test_without_a_question_one_is_asked_for_until_ctrl_d(at_terminal, log, more):
    child = at_terminal(log, *more)
    child.expect(r"read once \(ingest\)")
    child.expect("ask; Ctrl-D leaves")
    for question in ("where?", "who?"):
        child.expect(">>> ")  # what is typed earlier may be dropped
        child.send(f"{question}\r")
        child.expect(r"gen \d+ tok")
    child.expect(">>> ")
    child.sendeof()
    assert exit_code(child) == 0


@pytest.mark.native
@pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a pseudo-terminal")
def test_a_question_that_cannot_be_answered_does_not_end_the_interview(at_terminal, log):
    child = at_terminal(log, "--policy", "full")
    child.expect("ask; Ctrl-D leaves")
    child.expect(">>> ")
    child.send(f"{prose(400)}?\r")
    child.expect("error: ")
    child.expect(">>> ")
    child.send("where?\r")
    child.expect(r"gen \d+ tok")
    child.expect(">>> ")
    child.sendeof()
    assert exit_code(child) == 0


@pytest.mark.native
def test_read_now_and_ask_later(capsys, log, tiny):
    model, *options = tiny
    code, out, err = run(capsys, model, log, "--mode", "ingest", *options)
    assert (code, out) == (0, "")
    assert "read once (ingest)" in err
    code, out, err = run(capsys, model, log, "--mode", "ingest", "-q", "where?", *options)
    assert code == 0
    assert out
    assert "read before (ingest)" in err
    assert "tokens from the cache folder · KV 112/" in err
