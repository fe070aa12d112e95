"""One prompt and its answer, or a conversation at the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from restkv_local.cli import _options as opt
from restkv_local.cli._console import AnswerWriter, fail_usage, print_json, print_stats
from restkv_local.cli._input import read_documents, read_piped, stdin_is_terminal
from restkv_local.cli._turn import open_session, run_turn

from restkv_local.config import DEFAULTS
from restkv_local.errors import ConfigError

if TYPE_CHECKING:
    from restkv_local.chat.session import ChatSession
    from restkv_local.chat.session_file import SavedSession
    from restkv_local.documents import Document


def chat(
    ctx: typer.Context,
    model: opt.Model,
    prompt: Annotated[
        str | None,
        typer.Option("-p", "--prompt", metavar="TEXT", help="Ask this, answer, and end."),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "-f",
            "--file",
            metavar="FILE",
            help="Read first: text, HTML, PDF, DOCX, EPUB; repeatable; '-' is stdin.",
        ),
    ] = None,
    as_json: opt.Json = False,
    system: opt.System = None,
    session: Annotated[
        str | None,
        typer.Option(
            "--session",
            metavar="NAME",
            help="Go on with this conversation, or begin it; it is saved after every turn.",
        ),
    ] = None,
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
    kernel: opt.Kernel = DEFAULTS.kernel,
    alpha: opt.Alpha = DEFAULTS.alpha,
    scale: opt.Scale = DEFAULTS.scale,
    tau: opt.Tau = DEFAULTS.tau,
    scoring: opt.Scoring = DEFAULTS.scoring,
    n_predict: opt.NPredict = DEFAULTS.n_predict,
    temp: opt.Temp = DEFAULTS.temp,
    top_k: opt.TopK = DEFAULTS.top_k,
    top_p: opt.TopP = DEFAULTS.top_p,
    min_p: opt.MinP = DEFAULTS.min_p,
    repeat_penalty: opt.RepeatPenalty = DEFAULTS.repeat_penalty,
    seed: opt.Seed = DEFAULTS.seed,
    undo_mib: Annotated[
        int,
        typer.Option(
            "--undo-mib",
            help="Memory for going back in a conversation without reading; 0: none.",
            rich_help_panel=opt.RUNTIME,
        ),
    ] = DEFAULTS.undo_mib,
    n_threads: opt.NThreads = DEFAULTS.n_threads,
    n_gpu_layers: opt.NGpuLayers = DEFAULTS.n_gpu_layers,
    verbose: opt.Verbose = False,
    version: opt.Version = False,
) -> None:
    """Chat with MODEL over texts far longer than its KV cache.

    With -p, or when standard input is not a terminal: one answer on stdout. Piped text is put
    before the prompt. Otherwise a conversation; /help lists its commands.

    Ctrl-C stops an answer and keeps the conversation; at an empty prompt, twice in a row leaves
    with exit code 130. Ctrl-D or /exit leaves with 0.
    """
    settings = opt.read_settings(ctx)
    paths = file or []
    if prompt is not None and not prompt.strip():
        fail_usage("the prompt is empty; give -p a question, or leave -p out to chat")
    converses = prompt is None and "-" not in paths and not as_json and stdin_is_terminal()

    # All input is read before the model is loaded: a bad file is reported at once.
    piped = ""
    if "-" not in paths and not stdin_is_terminal():
        piped = read_piped()
    documents = read_documents(paths)
    text = "\n\n".join(part for part in (piped, prompt or "") if part.strip())
    if not converses and not text:
        if not documents:
            fail_usage("no prompt: give -p TEXT, -f FILE, or text on standard input")
        # As in llama.cpp, a file alone is the prompt.
        text, documents = "\n\n".join(document.text for document in documents), []

    from restkv_local.model.demo import resolve_model

    file_model = resolve_model(model)
    path = saved = None
    changes: dict[str, Any] = {}
    if session is not None:
        path, saved = find_session(session, file_model, system)
    if saved is not None:
        changes = {name: value for name, value in settings.items() if opt.is_given(ctx, name)}
        from restkv_local.chat.session_file import merge_settings

        settings = {**settings, **merge_settings(saved.config, changes)}
        system = saved.system
    with open_session(
        file_model,
        settings,
        system=system,
        verbose=verbose,
        saved=saved,
        changes=changes,
        use_cache=not no_cache,
        can_undo=converses,
    ) as conversation:
        if converses:
            from restkv_local.cli.repl import run_repl

            raise typer.Exit(run_repl(conversation, documents, path))
        try:
            answer_once(conversation, text, documents, as_json=as_json)
        finally:
            if path is not None and conversation.turns:
                conversation.save(path, replace_any=False)


def find_session(name: str, model: Path, system: str | None) -> tuple[Path, SavedSession | None]:
    """Return the file of a session and what is in it, None for a new one; before the model is loaded.

    Raises
    ------
    SessionFileError
        If the file cannot be used with this model.
    ConfigError
        If the name cannot be one, or another system prompt is asked for.
    """
    from restkv_local.chat.session_file import read_session, session_path
    from restkv_local.storage.fingerprint import fingerprint_model

    path = session_path(name)
    if not os.path.exists(path):
        return path, None
    saved = read_session(path)
    saved.check_model(fingerprint_model(model), model.name)
    if system is not None and system != saved.system:
        raise ConfigError(
            f"the session {name} has a system prompt of its own, which its cache was read with: "
            "leave -sys out, or begin a session under another name"
        )
    return path, saved


def answer_once(
    session: ChatSession, text: str, documents: Sequence[Document], *, as_json: bool
) -> None:
    """Print one answer on stdout, as text or as a JSON object, and its line on stderr.

    Raises
    ------
    typer.Exit
        With 130 when Ctrl-C stopped it; the partial answer has been printed.
    """
    if as_json:
        finished = run_turn(session, text, documents, lambda piece: None)
        print_json(session.report.to_json())
    else:
        with AnswerWriter() as writer:
            finished = run_turn(session, text, documents, writer.write)
    print_stats(session.report.to_json())
    if not finished:
        raise typer.Exit(130)
