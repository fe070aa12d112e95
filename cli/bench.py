"""Measure speed and memory of caches side by side: a table on stdout, a picture, a log that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from restkv_local.cli import _options as opt
from restkv_local.cli._console import (
    fail_usage,
    format_bytes,
    print_json,
    print_note,
    print_text,
    show_status,
)

from restkv_local.bench import ALL_REFERENCES, DEPTHS, N_GEN, N_PROMPT, N_REPETITIONS, REFERENCES
from restkv_local.config import DEFAULTS
from restkv_local.errors import RestKVError

if TYPE_CHECKING:
    from restkv_local.bench.report import BenchReport

COLUMNS = "Columns"
ROWS = "Rows"
SYNTHETIC = "Without a model"
OUTPUT = "Output"

DEFAULT_DEPTHS = ",".join(map(str, DEPTHS))

# As synthetic_model has them; not imported: `--help` must not wait for NumPy.
WEIGHT_NAMES = Literal["q4_0", "q8_0", "f16"]
VOCABULARY_NAMES = Literal["full", "small"]


def bench(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A GGUF file (of a split model: its first part), or 'demo'. Leave it out with --shape or --table.",
        ),
    ] = None,
    depths: Annotated[
        list[str] | None,
        typer.Option(
            "-d",
            "--n-depth",
            metavar="N,N,...",
            help=f"Tokens read before; repeatable, {DEFAULT_DEPTHS} by default.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    n_prompt: Annotated[
        int,
        typer.Option("-p", "--n-prompt", min=1, help="Tokens of pp.", rich_help_panel=ROWS),
    ] = N_PROMPT,
    n_gen: Annotated[
        int,
        typer.Option("-n", "--n-gen", min=1, help="Tokens of tg.", rich_help_panel=ROWS),
    ] = N_GEN,
    n_repetitions: Annotated[
        int,
        typer.Option(
            "-r", "--repetitions", min=1, help="Rounds; medians count.", rich_help_panel=ROWS
        ),
    ] = N_REPETITIONS,
    references: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            metavar="|".join(ALL_REFERENCES),
            help="llama.cpp's whole cache in f16 or q8_0, or its context shift with the rows of each"
            " budget: these three by default. tiles: the whole cache with our attention. Repeatable.",
            rich_help_panel=COLUMNS,
        ),
    ] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME",
            help=f"What scores a row; repeatable, {DEFAULTS.policy} by default.",
            rich_help_panel=COLUMNS,
        ),
    ] = None,
    allocations: Annotated[
        list[str] | None,
        typer.Option(
            "--allocation",
            metavar="NAME",
            help="How layers and KV heads share the budget; repeatable,"
            f" {DEFAULTS.allocation} by default.",
            rich_help_panel=COLUMNS,
        ),
    ] = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            metavar="N|SIZE|PERCENT",
            help=f"Rows kept per layer and KV head; repeatable, {DEFAULTS.budget} by default.",
            rich_help_panel=COLUMNS,
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape",
            metavar="NAME",
            help="Measure random weights in the shape of a known model: llama-3.1-8b, qwen2.5-7b,"
            " ...; a wrong name lists all.",
            rich_help_panel=SYNTHETIC,
        ),
    ] = None,
    weights: Annotated[
        WEIGHT_NAMES,
        typer.Option("--weights", help="How they are stored.", rich_help_panel=SYNTHETIC),
    ] = "q4_0",
    vocabulary: Annotated[
        VOCABULARY_NAMES,
        typer.Option(
            "--vocabulary",
            help="small: 259 tokens; smaller files, but the output matrix costs nothing any more.",
            rich_help_panel=SYNTHETIC,
        ),
    ] = "full",
    as_json: opt.Json = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print a line for each figure.", rich_help_panel=OUTPUT)
    ] = False,
    with_profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Show where the time goes at the greatest depth, and what writing could gain at best.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png",
            metavar="FILE",
            help="Draw speed and memory against depth as a PNG file.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log",
            metavar="FILE",
            help="Keep every cell as a line of JSON; a run that was stopped goes on there.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            metavar="LOG",
            help="Measure nothing; print what a log holds.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    guide: opt.Guide = DEFAULTS.guide,
    positions: opt.Positions = DEFAULTS.positions,
    n_ubatch: opt.NUbatch = DEFAULTS.n_ubatch,
    type_k: opt.TypeK = DEFAULTS.type_k,
    type_v: opt.TypeV = DEFAULTS.type_v,
    n_threads: opt.NThreads = DEFAULTS.n_threads,
    n_gpu_layers: opt.NGpuLayers = DEFAULTS.n_gpu_layers,
) -> None:
    """Measure speed and memory of caches side by side, in llama-bench's words.

    Rows: `pp512 @ dN` reads 512 tokens when N were read before, `tg128 @ dN` writes 128 there,
    `ttft @ dN` is the time to the first token of a prompt of N, peak memory is the whole process's
    as the system sees it; then what evictions cost. Columns: the whole cache in f16 and q8_0,
    llama.cpp's context shift, and each policy with each allocation at each budget.

    Every cell has a process of its own. Columns take turns within each round, and ratios compare
    cells of the same round. A cell that cannot be measured, for want of memory say, is named below
    the table. -ctk and -ctv are for the bounded columns and context shift.
    """
    settings = opt.read_settings(ctx)
    if [model, shape, table].count(None) != 2:
        fail_usage("name a MODEL, a --shape, or a log with --table: one of them")
    if as_json and as_csv:
        fail_usage("--json and --csv cannot both be printed; leave one out")
    if shape is None and (
        given := [one for one in ("weights", "vocabulary") if opt.is_given(ctx, one)]
    ):
        fail_usage(f"--{given[0]} is for --shape: name one, or leave it out")
    if table is not None and log is not None:
        fail_usage("--table measures nothing, so there is nothing to --log; leave one out")
    if references and "none" in references and len(references) > 1:
        fail_usage("--reference none stands alone: leave it out, or the others")
    wanted = read_depths(depths)

    # Imported here: `--help` must not wait for NumPy.
    from restkv_local.bench.caches import choose_caches
    from restkv_local.bench.log import BenchLog
    from restkv_local.bench.metadata import collect_metadata
    from restkv_local.bench.report import BenchReport
    from restkv_local.bench.runner import BenchPlan, run_bench
    from restkv_local.model.model_file import check_supported, read_model
    from restkv_local.pictures import check_picture
    from restkv_local.version import find_commit

    if png is not None:
        check_picture(png)
    if table is not None:
        report = BenchReport.from_log(table)
        show_report(report, as_json=as_json, as_csv=as_csv, with_profile=with_profile, png=png)
        return
    caches = choose_caches(
        references=references or REFERENCES,
        policies=policies or [DEFAULTS.policy],
        allocations=allocations or [DEFAULTS.allocation],
        budgets=budgets or [DEFAULTS.budget],
        **settings,
    )
    path = find_model(model, shape, weights=weights, vocabulary=vocabulary)
    model_shape = read_model(path)
    check_supported(model_shape, positions=positions)
    settings |= {"n_prompt": n_prompt, "n_gen": n_gen}
    metadata = collect_metadata(model_shape, settings)
    cells = BenchLog(log, metadata)
    plan = BenchPlan(
        model=str(path),
        caches=caches,
        depths=wanted,
        n_repetitions=n_repetitions,
        n_prompt=n_prompt,
        n_gen=n_gen,
    )
    try:
        with show_status("measuring") as say:
            samples = run_bench(plan, cells, commit=find_commit(), on_cell=say)
    except KeyboardInterrupt:
        kept = f"the same command goes on with {log}" if log else "with --log it would be kept"
        print_note(f"cancelled, {len(cells.samples)} cells were measured; {kept}")
        raise typer.Exit(130) from None
    report = BenchReport(metadata, caches, samples)
    show_report(report, as_json=as_json, as_csv=as_csv, with_profile=with_profile, png=png)


def show_report(
    report: BenchReport, *, as_json: bool, as_csv: bool, with_profile: bool, png: Path | None
) -> None:
    """Print what was measured, and draw it."""
    from restkv_local.bench.plot import draw_bench

    if all(sample.result is None for sample in report.samples):
        raise RestKVError(f"nothing could be measured: {(report.errors() or ['no cells'])[0]}")
    if as_json:
        print_json(report.to_json())
    elif as_csv:
        print_text(report.to_csv())
    else:
        print_text(report.to_markdown(with_profile=with_profile))
    if png is not None:
        draw_bench(report, png)
        print_note(f"wrote {png}", style="dim")


def read_depths(texts: list[str] | None) -> list[int]:
    """Return the depths, ascending, each once."""
    parts = [part.strip() for text in texts or [DEFAULT_DEPTHS] for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdecimal()):
            fail_usage(f"--n-depth takes whole numbers, as in 512,2048; got {part!r}")
        # Python reads no number of thousands of digits.
        if len(part) > 18 or int(part) > opt.MOST_TOKENS:
            fail_usage(f"--n-depth is at most {opt.MOST_TOKENS:,} tokens; got {part[:60]}")
    return sorted({int(part) for part in parts})


def find_model(model: str | None, shape: str | None, **options: Any) -> Path:
    """Return the file to measure; a synthetic one is written first if need be, and its size said."""
    from restkv_local.model.demo import resolve_model
    from restkv_local.model.synthetic_model import ensure_synthetic

    def announce(path: Path, n_bytes: int) -> None:
        print_note(f"writing {format_bytes(n_bytes)} of random weights to {path}", style="dim")

    if shape is None:
        assert model is not None
        return resolve_model(model)
    return ensure_synthetic(shape, on_write=announce, **options)
