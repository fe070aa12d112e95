"""Measure what eviction costs in quality: tables on stdout, a log that goes on, pictures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from restkv_local.cli import _options as opt
from restkv_local.cli._console import (
    fail_usage,
    format_seconds,
    print_error,
    print_note,
    print_text,
    stderr_console,
    stdout_console,
)
from restkv_local.cli._turn import open_model

from restkv_local.config import DEFAULT_SHARE, DEFAULTS
from restkv_local.evaluation import LENGTH, N_SAMPLES, N_SCORED, SEED, Question

if TYPE_CHECKING:
    from collections.abc import Callable

    from restkv_local.evaluation.log import LogContent
    from restkv_local.evaluation.runner import EvalProgress

TASKS = "Tasks"
GRID = "Grid: every combination is measured"
OUTPUT = "Output"

DEFAULT_POLICIES = ("full", DEFAULTS.policy)
DEFAULT_LOG = Path("eval.jsonl")

# What may differ between the runs that fill one log: it changes no score but for rounding.
_MACHINE = ("n_threads", "n_gpu_layers")


def evaluate(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A GGUF file (of a split model: its first part), or 'demo'. Leave it out with --table.",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="A task or a family of tasks; repeatable: niah, needles, ruler, ruler-vt, longbench,"
            " infinitebench, ..., ppl, reconstruction; --list has all.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    list_tasks: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Only list the tasks: what is asked, and the files that --data must or may hold.",
            rich_help_panel=TASKS,
        ),
    ] = False,
    lengths: Annotated[
        list[int] | None,
        typer.Option(
            "--length",
            metavar="N",
            min=1,
            max=opt.MOST_TOKENS,
            help=f"Tokens of prompt and answer; repeatable. {LENGTH} by default, files are taken as they are.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--samples",
            min=1,
            help=f"Samples of each task, length and seed; {N_SAMPLES} by default, of files all. Needles are"
            " spread over so many depths: a log has them for one -n.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            max=2**32 - 1,
            help=f"Decides what is drawn; repeatable, {SEED} by default.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    question: Annotated[
        Question,
        typer.Option(
            "--question",
            help="aware: it is read before the eviction, or guides it. unknown: the text is cut to"
            " the budget first, then the question comes.",
            rich_help_panel=TASKS,
        ),
    ] = "aware",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="Where longbench/, infinitebench/, ruler/ and so on lie.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    haystack: Annotated[
        Path | None,
        typer.Option(
            "--haystack",
            metavar="FILE",
            help="A text to hide things in, and of ppl and reconstruction; the manual that ships with"
            " Python, or seeded prose, by default.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    no_template: Annotated[
        bool,
        typer.Option(
            "--no-template",
            help="Ask in plain text, as of base models.",
            rich_help_panel=TASKS,
        ),
    ] = False,
    n_scored: Annotated[
        int,
        typer.Option(
            "--scored",
            min=2,
            help="Tokens that ppl goes on with after the eviction: all but the first are predicted.",
            rich_help_panel=TASKS,
        ),
    ] = N_SCORED,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            min=1,
            help="Tokens from one piece of ppl to the next; without it they do not overlap.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME",
            help=f"What scores a row; repeatable, {' and '.join(DEFAULT_POLICIES)} by default.",
            rich_help_panel=GRID,
        ),
    ] = None,
    allocations: Annotated[
        list[str] | None,
        typer.Option(
            "--allocation",
            metavar="NAME",
            help="How layers and KV heads share the budget; repeatable,"
            f" {DEFAULTS.allocation} by default.",
            rich_help_panel=GRID,
        ),
    ] = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            metavar="N|SIZE|PERCENT",
            help=f"Rows kept per layer and KV head; repeatable, {DEFAULT_SHARE} by default.",
            rich_help_panel=GRID,
        ),
    ] = None,
    prefills: Annotated[
        list[str] | None,
        typer.Option(
            "--prefill",
            metavar="bounded|full",
            help="Evict while reading, or once after the whole prompt as papers do; repeatable,"
            f" {DEFAULTS.prefill} by default.",
            rich_help_panel=GRID,
        ),
    ] = None,
    all_positions: Annotated[
        list[str] | None,
        typer.Option(
            "--positions",
            metavar="auto|original|compact",
            help=f"Renumber the rows that stay, or not; repeatable, {DEFAULTS.positions} by default.",
            rich_help_panel=GRID,
        ),
    ] = None,
    log: Annotated[
        Path,
        typer.Option(
            "--log",
            metavar="FILE",
            help="Where every score is kept as a line of JSON; a run that was stopped goes on there.",
            rich_help_panel=OUTPUT,
        ),
    ] = DEFAULT_LOG,
    tables: Annotated[
        list[Path] | None,
        typer.Option(
            "--table",
            metavar="LOG",
            help="Only print the tables of this log; repeatable.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png",
            metavar="FOLDER",
            help="Draw scores against rows kept, needles by depth and length, errors by layer.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
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
    n_threads: opt.NThreads = DEFAULTS.n_threads,
    n_gpu_layers: opt.NGpuLayers = DEFAULTS.n_gpu_layers,
    verbose: opt.Verbose = False,
) -> None:
    """Measure the quality of evicted caches with the field's tasks: needles, RULER, LongBench, ...

    Each sample is asked in every cell of the grid, greedily, and each score is a line of the log at
    once: after Ctrl-C the same command goes on. Cells with `--prefill full` share one reading. Every
    cell answers from its budget's rows; a chat keeps what was read since a single eviction.

    Besides tasks with answers: `ppl` reads a text, evicts and predicts what follows (perplexity, KL
    divergence from the full cache); `reconstruction` measures how far the plan of each policy moves
    every layer's attention output. Both read --length tokens; the latter always reads them whole.

    A task or a cell that cannot be done is one line, the others go on, and the exit code is 1.
    """
    if list_tasks:
        print_tasks()
        return
    if tables:
        if model is not None or tasks:
            fail_usage("--table prints what logs hold; leave MODEL and --task out")
        show_tables(tables, png)
        return
    if model is None or not tasks:
        fail_usage("name a MODEL and at least one --task, or a log with --table")
    settings = opt.read_settings(ctx)

    # Imported here: `--help` must not wait for NumPy.
    from restkv_local.evaluation.framing import Framing
    from restkv_local.evaluation.grid import make_cells
    from restkv_local.evaluation.log import EvalLog, LogContent
    from restkv_local.evaluation.metadata import collect_conditions, describe_run
    from restkv_local.evaluation.own_rules import fingerprint_rules
    from restkv_local.evaluation.plots import check_folder
    from restkv_local.evaluation.runner import EvalPlan, check_tasks, find_stand_ins, run_eval
    from restkv_local.model.demo import resolve_model

    check_tasks(tasks)
    plan = EvalPlan(
        tasks=tasks,
        cells=make_cells(
            policies or DEFAULT_POLICIES,
            allocations or [DEFAULTS.allocation],
            budgets or [DEFAULT_SHARE],
            prefills or [DEFAULTS.prefill],
            all_positions or [DEFAULTS.positions],
        ),
        lengths=lengths or [None],
        seeds=seeds or [SEED],
        n=n,
        question=question,
        use_template=not no_template,
        data=data,
        haystack=haystack,
        n_scored=n_scored,
        stride=stride,
    )
    if png is not None:
        check_folder(png)
    if stand_ins := find_stand_ins(plan):
        print_note(
            f"note: {' and '.join(stand_ins)} ask about the manual that ships with Python, so that figures compare"
            f" with each other, not with RULER's; for its own questions put {' and '.join(stand_ins.values())}"
            " into the folder of --data"
        )
    with open_model(resolve_model(model), settings, verbose=verbose) as llama:
        has_template = Framing(llama, use_template=not no_template).has_template
        if not has_template and not no_template:
            print_note("note: the model has no chat template; every prompt is plain text")
        n_trained = llama.shape.n_ctx_train
        if max(lengths or [0]) > n_trained:
            print_note(
                f"note: the model was trained on {n_trained:,} tokens; beyond them only bounded"
                " prefill with compact positions reads as it was trained to"
            )
        shared = {name: value for name, value in settings.items() if name not in _MACHINE}
        shared |= {
            "template": has_template,
            "haystack": None if haystack is None else haystack.name,
        }
        conditions = collect_conditions(llama.shape, shared)
        run = describe_run(_as_json(ctx.params), fingerprint_rules(plan.cells))
        kept = EvalLog(log, conditions, run)
        if kept.was_cut:
            print_note(
                f"note: the last line of {log} was not whole; it is dropped and measured again"
            )
        if kept.records:
            print_note(
                f"{log} has {len(kept.records):,} score{'' if len(kept.records) == 1 else 's'}; the others are added",
                style="dim",
            )
        if kept.commits and run["commit"]:
            print_note(
                f"note: {log} has scores by commit {', '.join(kept.commits)}; this is {run['commit']}. If answers or"
                " metrics changed in between, name another log"
            )
        try:
            with show_progress() as (update, say_failure):
                result = run_eval(
                    llama, plan, settings, kept, on_progress=update, on_failure=say_failure
                )
        except KeyboardInterrupt:
            print_note(f"cancelled; the same command goes on with {log}, nothing is lost")
            raise typer.Exit(130) from None
    if result.records:
        show_logs([LogContent(conditions, records=result.records)], png)
    if result.failures:
        raise typer.Exit(1)


def print_tasks() -> None:
    """Print the tasks as a table on stdout, a section for each family."""
    from rich import box
    from rich.table import Table

    from restkv_local.evaluation.runner import TEXT_TASKS
    from restkv_local.evaluation.tasks.registry import TASKS as ALL

    table = Table(box=box.SIMPLE)
    table.add_column("task", no_wrap=True)
    table.add_column("what is asked", ratio=1)
    table.add_column("files, in --data", ratio=1, overflow="fold")
    family = None
    for task in ALL.values():
        if task.family != family:
            table.add_section()
            family = task.family
        table.add_row(
            task.name, task.summary, task.needs or (task.takes and f"{task.takes}, if there")
        )
    table.add_section()
    for name, summary in TEXT_TASKS.items():
        table.add_row(name, summary, "")
    console = stdout_console()
    console.print(table)
    families = ", ".join(dict.fromkeys(task.family for task in ALL.values()))
    console.print(f"--task takes a family too: {families}", soft_wrap=True)


def show_tables(paths: Iterable[Path], png: Path | None) -> None:
    """Print and draw what logs hold."""
    from restkv_local.evaluation.log import read_log
    from restkv_local.evaluation.plots import check_folder

    if png is not None:
        check_folder(png)
    contents = []
    for path in paths:
        content = read_log(path)
        if content.was_cut:
            print_note(f"note: the last line of {path} is not whole; it is left out")
        contents.append(content)
    show_logs(contents, png)


def show_logs(contents: list[LogContent], png: Path | None) -> None:
    """Print the tables of logs on stdout, and write their pictures.

    Raises
    ------
    InputError
        If pictures are asked for and the logs were begun under several conditions.
    """
    from restkv_local.errors import InputError
    from restkv_local.evaluation.plots import draw_records
    from restkv_local.evaluation.report import write_report

    print_text(write_report(contents))
    if png is None:
        return
    if any(content.conditions != contents[0].conditions for content in contents):
        raise InputError("these logs were begun under several conditions; draw one at a time")
    records = {record.key: record for content in contents for record in content.records}
    for path in draw_records(list(records.values()), png):
        print_note(f"wrote {path}", style="dim")


@contextmanager
def show_progress() -> Iterator[tuple[Callable[[EvalProgress], None], Callable[[str], None]]]:
    """Show a bar over all cells with the time left, on a terminal only.

    Yields
    ------
    tuple of callable
        What moves the bar, and what prints an error line above it.
    """
    console = stderr_console()
    if not console.is_interactive:
        yield (lambda progress: None), print_error
        return
    from rich.progress import BarColumn, Progress, TextColumn

    start = time.monotonic()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("ETA {task.fields[eta]}"),
        console=console,
        transient=True,
        refresh_per_second=4,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task("starting", total=0, eta="")

        def update(progress: EvalProgress) -> None:
            # What the log had took no time.
            n_new = progress.done - progress.n_known
            seconds = (time.monotonic() - start) / n_new if n_new else 0.0
            eta = format_seconds(seconds * (progress.total - progress.done)) if n_new else "?"
            bar.update(
                task,
                description=progress.text,
                completed=progress.done,
                total=progress.total,
                eta=eta,
            )

        # By the bar's own console, which prints above it.
        yield update, lambda text: console.print(f"error: {text}", style="red")


def _as_json(params: dict[str, Any]) -> dict[str, Any]:
    """Return a command line's values; of paths the last part, for logs are passed on."""
    return {
        name: Path(value).name if isinstance(value, Path) or name == "model" else value
        for name, value in params.items()
        if name != "tables"
    }
