"""Questions about documents: what is read when, and that an answer does not depend on what was asked before."""

from contextlib import closing
from dataclasses import replace

import pytest

from restkv_local import ChatSession
from restkv_local.chat.ask import DocumentReader, ask
from restkv_local.documents import parse_document
from restkv_local.engine import Engine
from restkv_local.errors import ConfigError, InputError
from restkv_local.storage.reading_cache import ReadingCache
from tests.session.conversation import MODEL, SWA, prose

pytestmark = pytest.mark.native

ONE, TWO = "where is the ship?", "who rows the boat?"
SMALL = {"budget": 112, "n_predict": 12, "n_ubatch": 128, "n_guide": 48}


@pytest.fixture
def document():
    return parse_document(prose(400).encode(), "log.txt")


def answers(llama, document, questions, **options):
    return list(ask(llama, document, questions, **options))


@pytest.mark.parametrize("mode", ["per-question", "shared", "ingest"])
def test_an_answer_does_not_depend_on_what_was_asked_before(open_llama, document, mode):
    llama = open_llama(MODEL, **SMALL)
    with DocumentReader(llama, [document], mode=mode, questions=[ONE, TWO]) as reader:
        first = "".join(reader.ask(TWO)), reader.answer.kv["seen"]
        "".join(reader.ask(ONE))
        assert ("".join(reader.ask(TWO)), reader.answer.kv["seen"]) == first
        assert reader.answer.kv["events"] > 0


def test_one_question_is_answered_as_in_a_chat(open_llama, document):
    llama = open_llama(MODEL, **SMALL)
    (found,) = answers(llama, document, [ONE])
    assert found.mode == "per-question"
    session = ChatSession(llama)
    assert "".join(session.send(ONE, documents=[document.text])) == found.response
    assert session.report.usage["prompt_tokens"] == found.timings["prompt_n"]


def test_a_question_of_a_letter_is_not_looked_for_in_the_template_s_end(open_llama, document):
    llama = open_llama(MODEL, **SMALL)
    with DocumentReader(llama, [document], mode="shared", questions=["Who?", "a"]) as reader:
        tail = reader._template.tail()

        def tokenize(text):
            return llama.native.tokenize(text, add_special=False)

        assert reader._shared_guide() == tokenize(f"Who?\na{tail}")
        reader._before = [*reader._before, 0]  # as where the letter joins what precedes it
        assert reader._prompt("a").after == tokenize(f"a{tail}")


@pytest.mark.parametrize("mode", ["shared", "ingest"])
def test_several_questions_share_one_reading(open_llama, document, mode):
    llama = open_llama(MODEL, **SMALL)
    chunks = []
    with DocumentReader(llama, [document], mode=mode, questions=[ONE, TWO]) as reader:
        reader.read(on_progress=chunks.append)
        n_chunks = len(chunks)
        assert chunks[-1].processed == chunks[-1].total == reader.reading.prompt_n
        for question in (ONE, TWO):
            "".join(reader.ask(question))
            assert reader.answer.timings["prompt_n"] < 80
        assert len(chunks) == n_chunks
        assert reader.reading.kv["kept"] <= llama.engine.budget


def test_a_blank_document_hides_no_other(open_llama, document):
    document = replace(document, text=f"{document.text}   {document.text}")
    blank = replace(document, name="blank.txt", text="   ")
    llama = open_llama(MODEL, **SMALL)
    (alone,), (beside,) = (answers(llama, many, [ONE]) for many in (document, [blank, document]))
    assert beside.response == alone.response
    assert beside.passages == alone.passages
    assert {passage.document for passage in beside.passages} == {document.name}


def test_with_rows_for_everything_both_ways_of_reading_once_agree(open_llama, document):
    llama = open_llama(MODEL, **SMALL | {"policy": "full"})
    shared, ingest = (
        [one.response for one in answers(llama, document, [ONE, TWO], mode=mode)]
        for mode in ("shared", "ingest")
    )
    assert shared == ingest


def test_reading_without_a_question_has_a_policy_of_its_own(open_llama, document):
    llama = open_llama(MODEL, **SMALL)
    before = llama.engine
    (found,) = answers(llama, document, [ONE], mode="ingest")
    assert (found.kv["policy"], found.kv["allocation"]) == ("kvzip", "global")
    assert llama.engine is before
    chosen = open_llama(MODEL, **SMALL, policy="snapkv")
    (found,) = answers(chosen, document, [ONE], mode="ingest")
    assert (found.kv["policy"], found.kv["allocation"]) == ("snapkv", "uniform")


def test_a_guide_of_ones_own_says_what_matters_before_any_question(open_llama, document):
    kept = []
    for guide in ("where is the ship?", "who rows?"):
        llama = open_llama(MODEL, **SMALL, guide=guide)
        with DocumentReader(llama, [document], mode="ingest") as reader:
            reader.read()
            assert reader.reading.kv["policy"] == "restkv"
            assert reader.reading.kv["guide_ms"] > 0
            kept.append(llama.engine.rows.positions.tobytes())
    assert kept[0] != kept[1]


@pytest.mark.parametrize("mode", ["per-question", "shared", "ingest"])
def test_a_document_that_was_read_before_is_not_read_again(open_llama, document, tmp_path, mode):
    readings = ReadingCache(tmp_path / "readings")
    found = []
    for _ in range(2):
        llama = open_llama(MODEL, **SMALL)
        chunks = []
        options = {"mode": mode, "readings": readings, "on_progress": chunks.append}
        found.append([one.response for one in answers(llama, document, [ONE, TWO], **options)])
    assert found[0] == found[1]
    assert sum(chunk.total for chunk in chunks) < 160
    (again,) = answers(open_llama(MODEL, **SMALL), document, [ONE], mode=mode, readings=readings)
    assert again.timings["prompt_n"] < 160  # what was not read has no pace
    other = parse_document(document.text[:-9].encode(), "log.txt")
    answers(llama, other, [ONE, TWO], **options)
    assert max(chunk.total for chunk in chunks) > 1000


def test_a_reading_is_copied_once(open_llama, document, tmp_path, monkeypatch):
    saved = []
    save = Engine.save
    monkeypatch.setattr(Engine, "save", lambda engine: saved.append(1) or save(engine))
    readings = ReadingCache(tmp_path)
    for modes in (["shared"], ["per-question"]):
        answers(
            open_llama(MODEL, **SMALL),
            document,
            [ONE, TWO][: len(modes)],
            mode=modes[0],
            readings=readings,
        )
    assert len(saved) == 2
    answers(open_llama(MODEL, **SMALL), document, [ONE], mode="per-question")
    assert len(saved) == 2  # nothing keeps it


def test_a_cache_that_cannot_be_copied_is_read_again_and_says_so(open_llama, document):
    llama = open_llama(SWA, **SMALL, positions="original")
    first, second = answers(llama, document, [ONE, TWO], mode="shared")
    assert first.notes == ()
    assert second.notes == ("this model's cache cannot be copied: the documents were read again",)
    assert second.timings["prompt_n"] > 1000


def test_a_closed_stream_leaves_what_was_said_and_the_next_question_works(open_llama, document):
    llama = open_llama(MODEL, **SMALL)
    with DocumentReader(llama, [document], mode="shared", questions=[ONE, TWO]) as reader:
        whole = "".join(reader.ask(ONE))
        with closing(reader.ask(ONE)) as stream:
            said = next(stream)
        assert reader.answer.finish_reason == "cancelled"
        assert whole.startswith(said)
        assert reader.answer.response == said
        assert "".join(reader.ask(ONE)) == whole


def test_ctrl_c_while_reading_leaves_a_reader_that_can_be_asked(open_llama, document):
    llama = open_llama(MODEL, **SMALL)

    def stop(progress):
        if progress.processed > 300:
            raise KeyboardInterrupt

    with DocumentReader(llama, [document], mode="shared", questions=[ONE]) as reader:
        with pytest.raises(KeyboardInterrupt):
            reader.read(on_progress=stop)
        interrupted = "".join(reader.ask(ONE))
    (found,) = answers(llama, document, [ONE], mode="shared")
    assert found.response == interrupted


def test_a_question_cancelled_while_reading_has_no_answer(open_llama, document):
    """Not the one before it, either."""
    llama = open_llama(MODEL, **SMALL)

    def stop(progress):
        raise KeyboardInterrupt

    with DocumentReader(llama, [document]) as reader:
        "".join(reader.ask(ONE))
        assert reader.answer.question == ONE
        with pytest.raises(KeyboardInterrupt):
            "".join(reader.ask(TWO, on_progress=stop))
        assert reader.answer is None


def test_answers_that_nobody_waits_for_give_the_model_back(open_llama, document):
    llama = open_llama(MODEL, **SMALL)
    before = llama.engine
    with closing(llama.ask(document, [ONE, TWO])) as stream:
        assert next(stream).question == ONE
        assert llama.engine is not before
    assert llama.engine is before


def test_several_documents_are_named(open_llama, document):
    llama = open_llama(MODEL, **SMALL)
    other = parse_document(b"The ship is in the harbour.", "note.txt")
    (found,) = answers(llama, [document, other], [ONE])
    assert found.timings["prompt_n"] > 1000
    assert {one.document for one in found.passages} <= {"log.txt", "note.txt"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"questions": [" "]}, InputError, "a question is empty"),
        ({"questions": [], "mode": "shared"}, ConfigError, "give them, or use 'ingest'"),
        ({"questions": [ONE], "mode": "often"}, ConfigError, "mode must be one of auto"),
        ({"questions": [ONE * 30], "mode": "shared"}, ConfigError, "ask in groups"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_read(
    open_llama, document, options, error, message
):
    llama = open_llama(MODEL, **SMALL)
    with pytest.raises(error, match=message):
        DocumentReader(llama, [document], **options)
    assert not llama.engine.is_open


def test_a_reading_that_is_refused_leaves_a_conversation_its_cache(open_llama, document):
    """Its rows were gone before kvzip's repetition, too long for the chunk, was refused."""
    llama = open_llama(MODEL, **SMALL | {"n_ubatch": 32, "n_guide": 16})
    session = ChatSession(llama)
    "".join(session.send("Hello."))
    kept = session.context().kept
    with pytest.raises(ConfigError, match="n_ubatch"):
        DocumentReader(llama, [document], mode="ingest")
    assert session.context().kept == kept > 0
    "".join(session.send("And?"))
    assert not session.report.notes


def test_a_file_is_read_and_a_text_is_a_text(open_llama, tmp_path, monkeypatch):
    llama = open_llama(MODEL, **SMALL)
    path = tmp_path / "log.txt"
    path.write_text(prose(50))
    by_path = answers(llama, path, [ONE])
    assert by_path[0].response == answers(llama, prose(50), ONE)[0].response
    monkeypatch.chdir(tmp_path)
    assert answers(llama, "log.txt", [ONE])[0].response == by_path[0].response
    path.rename(tmp_path / "my 1. log.txt")
    assert answers(llama, "my 1. log.txt", [ONE])[0].response == by_path[0].response


@pytest.mark.parametrize(
    "name",
    [
        "gone.txt",
        "my report.pdf",
        "C:\\Users\\Jane Doe\\report.PDF",
        "Prof. Doe, No. 2.docx",
        "letter.docm",
    ],
)
def test_a_file_that_is_not_there_is_no_text(open_llama, name):
    """With a space in its name it was, and the model was asked about those few words."""
    with pytest.raises(InputError) as refusal:
        answers(open_llama(MODEL, **SMALL), name, [ONE])
    assert str(refusal.value) == f"{name}: no such file"


@pytest.mark.parametrize("text", ["caf\udce9", "half a pair: \ud800"])
def test_a_text_that_cannot_be_written_is_refused(open_llama, text):
    with pytest.raises(InputError, match="text is not UTF-8 text"):
        answers(open_llama(MODEL, **SMALL), text, [ONE])


@pytest.mark.parametrize(
    "text",
    [
        "Everything is in order. See report.pdf",
        "In the folder:\nreport.pdf",
        f"{prose(60)} report.pdf",
        "report.pdf is short",
    ],
)
def test_a_text_may_end_in_the_name_of_a_file(open_llama, text):
    (found,) = answers(open_llama(MODEL, **SMALL), text, [ONE])
    assert {passage.document for passage in found.passages} == {"text"}


@pytest.mark.parametrize("options", [{}, {"policy": "full"}, {"prefill": "full"}], ids=str)
def test_a_reading_outlives_somebody_elses_call(open_llama, document, options):
    """Another text takes the cache, with a length and a system prompt of its own."""
    with open_llama(MODEL, n_predict=8, **options) as llama:
        questions = ["What is the code?", "When did it leave?"]
        with DocumentReader(
            llama, [document], mode="shared", questions=questions, system="be brief"
        ) as reader:
            reader.read()
            expected = "".join(reader.ask(questions[1]))
            n_pinned = llama.engine.n_pinned
            llama("a short text", max_tokens=2)
            assert llama.engine.n_pinned == 0 < n_pinned
            assert "".join(reader.ask(questions[1])) == expected
            assert llama.engine.n_pinned == n_pinned
            assert not reader.answer.notes
