"""Questions about documents: answers on stdout, where they come from on stderr."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from restkv_local.cli import _options as opt
from restkv_local.cli._console import (
    AnswerWriter,
    PrefillBar,
    fail_usage,
    format_stats,
    print_error,
    print_json,
    print_note,
    print_stats,
    print_text,
)
from restkv_local.cli._input import read_documents, stdin_is_terminal
from restkv_local.cli._turn import open_model, run_answer

from restkv_local.chat import Mode
from restkv_local.config import DEFAULTS
from restkv_local.errors import RestKVError

if TYPE_CHECKING:
    from restkv_local.chat.ask import Answer, DocumentReader
    from restkv_local.documents import Document


UNREAD = "cancelled: the documents were not read to their end"


def ask(
    ctx: typer.Context,
    model: opt.Model,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="Text, Markdown, HTML, PDF, DOCX, EPUB; '-' is stdin."
        ),
    ],
    questions: Annotated[
        list[str] | None,
        typer.Option("-q", "--question", metavar="TEXT", help="A question; repeatable."),
    ] = None,
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode",
            help="How often to read: again for each question (most exact), once with all questions in mind,"
            " or once without any; auto: the first that your questions allow.",
        ),
    ] = "auto",
    as_json: opt.Json = False,
    system: opt.System = None,
    no_cache: opt.NoCache = False,
    budget: opt.Budget = opt.DEFAULT_BUDGET,
    policy: opt.Policy = DEFAULTS.policy,
    allocation: opt.Allocation = DEFAULTS.allocation,
    prefill: opt.Prefill = DEFAULTS.prefill,
    positions: opt.Positions = DEFAULTS.positions,
    guide: opt.Guide = DEFAULTS.guide,
    n_sink: opt.NSink = DEFAULTS.n_sink,
    n_recent: opt.NRecent = DEFAULTS.n_recent,
    n_obs: opt.NObs = DEFAULTS.n_obs,
    n_guide: opt.NGuide = DEFAULTS.n_guide,
    n_ubatch: opt.NUbatch = DEFAULTS.n_ubatch,
    type_k: opt.TypeK = DEFAULTS.type_k,
    type_v: opt.TypeV = DEFAULTS.type_v,
    n_predict: opt.NPredict = DEFAULTS.n_predict,
    # Not a conversation: what a document says should not depend on luck.
    temp: opt.Temp = 0.0,
    top_k: opt.TopK = DEFAULTS.top_k,
    top_p: opt.TopP = DEFAULTS.top_p,
    min_p: opt.MinP = DEFAULTS.min_p,
    repeat_penalty: opt.RepeatPenalty = DEFAULTS.repeat_penalty,
    seed: opt.Seed = DEFAULTS.seed,
    n_threads: opt.NThreads = DEFAULTS.n_threads,
    n_gpu_layers: opt.NGpuLayers = DEFAULTS.n_gpu_layers,
    verbose: opt.Verbose = False,
) -> None:
    """Answer questions about documents of any length; all of them is read, nothing is cut off before.

    Without -q at a terminal: the documents are read once, then you ask. Without -q elsewhere they
    are read and kept in the cache folder: the same command with --mode ingest and -q answers from there.

    Each answer ends with the passages it looked at most, so that you can check it. Ctrl-C stops
    reading or answering; exit code 130.
    """
    settings = opt.read_settings(ctx)
    asked = questions or []
    for question in asked:
        if not question.strip():
            fail_usage("a question is empty; give each as -q TEXT")
    converses = not asked and not as_json and "-" not in files and stdin_is_terminal()
    if not asked and not converses:
        refuse_idle(mode, no_cache=no_cache, as_json=as_json)
    documents = read_documents(files)

    # Imported here: `--help` must not wait for NumPy.
    from restkv_local.chat.ask import DocumentReader
    from restkv_local.model.demo import resolve_model
    from restkv_local.storage.reading_cache import ReadingCache

    readings = None if no_cache else ReadingCache.of_user()
    if readings is None and not asked and not converses:
        refuse_idle(mode, no_cache=True, as_json=as_json)
    path = resolve_model(model)
    with (
        open_model(path, settings, verbose=verbose) as llama,
        DocumentReader(
            llama, documents, mode=mode, questions=asked, system=system, readings=readings
        ) as reader,
    ):
        if not read_with_bar(reader):
            raise typer.Exit(130)
        if converses:
            raise typer.Exit(hold_interview(reader))
        finished, answers = True, []
        for question in asked:
            finished = answer(reader, question, silent=as_json, titled=len(asked) > 1)
            if reader.answer is not None:
                answers.append(reader.answer)
            if not finished:
                break
        if as_json:
            print_json(describe(reader, path.name, documents, answers))
        elif finished:
            say_reading(reader)
    if not finished:
        raise typer.Exit(130)


def refuse_idle(mode: str, *, no_cache: bool, as_json: bool) -> None:
    """End with exit code 2 where nothing would come of a run without questions and without a terminal."""
    if mode == "per-question":
        fail_usage(
            "nothing to do: --mode per-question reads for a question; give -q TEXT, or --mode ingest"
            " to read now and ask later"
        )
    # With --json what the reading took is printed: that may be all that is wanted.
    if no_cache and not as_json:
        fail_usage(
            "nothing to do: with --no-cache (or RESTKV_CACHE_LIMIT=0) and no question the reading would be"
            " thrown away; give -q TEXT, or let it be kept to ask later"
        )


def read_with_bar(reader: DocumentReader) -> bool:
    """Read what all questions share; False when Ctrl-C stopped it."""
    bar = PrefillBar()
    try:
        with bar:
            reader.read(on_progress=bar.update)
    except KeyboardInterrupt:
        print_note(UNREAD)
        return False
    return True


def answer(reader: DocumentReader, question: str, *, silent: bool, titled: bool) -> bool:
    """Answer one question on stdout, with its passages on stderr; False when Ctrl-C stopped it."""
    if silent:
        finished = run_answer(partial(reader.ask, question), lambda piece: None)
    else:
        finished = stream_answer(reader, question, titled=titled)
    if reader.answer is None:
        print_note(UNREAD if reader.reading is None else "cancelled: the question was not read")
    elif not silent:
        for passage in reader.answer.passages:
            where = f"{passage.document}, {passage.place}"
            print_note(f"  {passage.share:4.0%}  {where}: {passage.text}", style="dim")
        print_stats(reader.answer.to_json())
    return finished


def stream_answer(reader: DocumentReader, question: str, *, titled: bool) -> bool:
    """Write an answer as it comes, under its question where there are several."""
    with AnswerWriter() as writer:
        if titled:
            writer.write(f"{question.strip()}\n")
        finished = run_answer(partial(reader.ask, question), writer.write)
    if titled:
        print_text("\n")
    return finished


def hold_interview(reader: DocumentReader) -> int:
    """Answer what is typed until Ctrl-D; return the exit code."""
    from restkv_local.cli.repl import TerminalReader

    say_reading(reader)
    print_note("ask; Ctrl-D leaves", style="dim")
    terminal = TerminalReader()
    while True:
        try:
            question = terminal.read()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            if terminal.line_was_empty:
                return 130
            continue
        if not question.strip():
            continue
        try:
            answer(reader, question, silent=False, titled=False)
        except RestKVError as error:
            print_error(str(error))


def say_reading(reader: DocumentReader) -> None:
    """Write how often the documents were read, and what the reading took that all questions share."""
    reading = reader.reading
    if reading is None:
        print_note(f"read for each question ({reader.mode})", style="dim")
        return
    if reading.from_cache:
        kept, seen = reading.kv["kept"], reading.kv["seen"]
        print_note(
            f"read before ({reader.mode}): {reading.prompt_n:,} tokens from the cache folder"
            f" · KV {kept:,}/{seen:,} kept",
            style="dim",
        )
        return
    timings = {
        "prompt_n": reading.prompt_n,
        "prompt_per_second": reading.prompt_per_second,
    }
    line = format_stats({"timings": timings, "kv": reading.kv, "finish_reason": "stop"})
    print_note(f"read once ({reader.mode}): {line}", style="dim")


def describe(
    reader: DocumentReader, model: str, documents: list[Document], answers: list[Answer]
) -> dict[str, Any]:
    """Return the object that ``--json`` prints."""
    from dataclasses import asdict

    from restkv_local import __version__

    return {
        "model": model,
        "version": __version__,
        "mode": reader.mode,
        "documents": [
            {
                "name": document.name,
                "kind": document.kind,
                "characters": len(document.text),
                "sha256": document.sha256,
                "notes": list(document.notes),
            }
            for document in documents
        ],
        "reading": None if reader.reading is None else asdict(reader.reading),
        "answers": [one.to_json() for one in answers],
    }
